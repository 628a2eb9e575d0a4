//! What the server answers by itself, and what it leaves to its caller.

use std::time::Duration;

use http::{Method, Request, StatusCode, Version};
use tokio::time::timeout;

use super::{LOCAL, NOTHING, Pair, client, request};
use crate::hbone::{ConnectRequest, TunnelError, client::RequestError};

async fn status(pair: &Pair, method: Method, uri: &str) -> StatusCode {
    let mut requests = pair.requests.clone().ready().await.unwrap();
    let request = Request::builder().method(method).uri(uri).version(Version::HTTP_2).body(()).unwrap();
    requests.send_request(request, false).unwrap().0.await.unwrap().status()
}

#[tokio::test]
async fn what_is_no_connect_to_this_pod_is_answered_with_400() {
    let mut pair = Pair::new().await;
    for (method, uri) in [
        (Method::GET, "http://10.0.0.7:80/"),
        (Method::POST, "https://10.0.0.7:80/"),
        (Method::CONNECT, "10.0.0.8:80"),
        (Method::CONNECT, "127.0.0.1:80"),
        (Method::CONNECT, "[::1]:80"),
        (Method::CONNECT, "10.0.0.7:0"),
    ] {
        assert_eq!(status(&pair, method.clone(), uri).await, StatusCode::BAD_REQUEST, "{method} {uri}");
    }
    assert!(pair.incoming.try_recv().is_err(), "a refused request was handed out");
    // The connection has not suffered.
    pair.tunnel().await;
}

#[tokio::test]
async fn a_request_carries_what_the_client_said() {
    let mut pair = Pair::new().await;
    let asked = ConnectRequest {
        authority: LOCAL.parse().unwrap(),
        forwarded: Some("[fd00::1]:4711".parse().unwrap()),
        baggage: Some("service.name=front".to_owned()),
    };
    let (requests, lease) = (pair.requests.clone(), pair.link.lease());
    let asking = tokio::spawn(async move { client::request(requests, lease, (&asked, NOTHING)).await });
    let incoming = pair.incoming.recv().await.unwrap();
    assert_eq!(incoming.authority(), LOCAL);
    assert_eq!(incoming.target(), Some(LOCAL.parse().unwrap()));
    assert_eq!(incoming.forwarded(), Some("for=\"[fd00::1]:4711\""));
    assert_eq!(incoming.baggage(), Some("service.name=front"));
    let _tunnel = incoming.accept().unwrap();
    asking.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_name_is_left_to_the_caller() {
    let mut pair = Pair::new().await;
    let mut requests = pair.requests.clone().ready().await.unwrap();
    let request = Request::builder().method(Method::CONNECT).uri("web.shop:80").version(Version::HTTP_2);
    let (response, _stream) = requests.send_request(request.body(()).unwrap(), false).unwrap();
    let incoming = pair.incoming.recv().await.unwrap();
    assert_eq!((incoming.authority(), incoming.target()), ("web.shop:80", None));
    incoming.refuse(StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(response.await.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn a_refusal_reaches_the_client_and_frees_the_stream() {
    let mut pair = Pair::new().await;
    for code in [StatusCode::UNAUTHORIZED, StatusCode::SERVICE_UNAVAILABLE] {
        // More than the server takes at once: each of them must be over when it is refused.
        for _ in 0..300 {
            let (requests, lease) = (pair.requests.clone(), pair.link.lease());
            let asking =
                tokio::spawn(
                    async move { client::request(requests, lease, (&request(LOCAL), NOTHING)).await },
                );
            pair.incoming.recv().await.unwrap().refuse(code);
            match asking.await.unwrap() {
                Err(RequestError::Refused(status)) => assert_eq!(status, code),
                other => panic!("{other:?}"),
            }
        }
    }
}

#[tokio::test]
async fn a_request_that_is_dropped_unanswered_is_reset() {
    let mut pair = Pair::new().await;
    let (requests, lease) = (pair.requests.clone(), pair.link.lease());
    let asking =
        tokio::spawn(async move { client::request(requests, lease, (&request(LOCAL), NOTHING)).await });
    drop(pair.incoming.recv().await.unwrap());
    match asking.await.unwrap() {
        Err(RequestError::Failed(error)) => assert_eq!(error.reason(), Some(h2::Reason::CANCEL)),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_client_that_gives_up_is_noticed() {
    let mut pair = Pair::new().await;
    let asking = tokio::spawn(pair.connect());
    let mut incoming = pair.incoming.recv().await.unwrap();
    assert!(timeout(Duration::from_millis(10), incoming.cancelled()).await.is_err());
    asking.abort();
    assert_eq!(incoming.cancelled().await, TunnelError::Reset(h2::Reason::CANCEL));
    assert!(incoming.accept().is_err());
}
