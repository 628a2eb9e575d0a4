//! The client against servers that behave, and servers that do not.

use std::{
    convert::Infallible,
    fs,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, IsCa, KeyPair};
use rustls::{
    ServerConfig, pki_types::CertificateSigningRequestDer, pki_types::pem::PemObject as _, version::TLS13,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tonic::{Code, Status, codegen::BoxFuture, server};
use tonic_prost::ProstCodec;

use super::{
    GrpcCa, GrpcConfig, GrpcError,
    istio::{CREATE_CERTIFICATE, CertificateRequest, CertificateResponse},
};
use crate::identity::{
    CaError, CertificateAuthority as _, Csr, Rejected, SvidError, SvidStore, TlsError,
    ca::certificate_pem,
    testing::{CLIENT, HOUR, TestRoot, WEB, dns, identity, leaf},
    tls::provider,
};

/// What a server does with a request.
type Answer =
    dyn Fn(tonic::Request<CertificateRequest>) -> BoxFuture<CertificateResponse, Status> + Send + Sync;

/// What a server does with a TLS connection before any HTTP/2; what it returns is served.
type Greeting =
    fn(TlsStream<TcpStream>) -> Pin<Box<dyn Future<Output = Option<TlsStream<TcpStream>>> + Send>>;

/// An authority's server that does as it is told.
struct World {
    dir: TempDir,
    root: Arc<TestRoot>,
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl World {
    /// A server that answers each request with `answer`.
    async fn answering<F>(
        answer: impl Fn(Arc<TestRoot>, CertificateRequest) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<CertificateResponse, Status>> + Send + 'static,
    {
        Self::start(
            "localhost",
            |stream| Box::pin(async { Some(stream) }),
            move |root| Arc::new(move |request| Box::pin(answer(Arc::clone(&root), request.into_inner()))),
        )
        .await
    }

    async fn start(
        name: &str,
        greeting: Greeting,
        answer: impl FnOnce(Arc<TestRoot>) -> Arc<Answer>,
    ) -> Self {
        let root = Arc::new(TestRoot::new("test root"));
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("roots.pem"), certificate_pem(&root.certificate)).unwrap();
        fs::write(dir.path().join("token"), "a.b.c\n").unwrap();
        let mut params = leaf(WEB);
        params.subject_alt_names = vec![dns(name)];
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(root.issue(&params));
        config.alpn_protocols = vec![b"h2".to_vec()];
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        let served = serve(listener, config, greeting, answer(Arc::clone(&root)), Arc::clone(&connections));
        tasks.spawn(served);
        Self { dir, root, address, connections, _tasks: tasks }
    }

    fn config(&self) -> GrpcConfig {
        GrpcConfig {
            address: format!("https://localhost:{}", self.address.port()).parse().unwrap(),
            server_name: None,
            roots: self.dir.path().join("roots.pem"),
            server_roots: None,
            token: self.dir.path().join("token"),
            cluster: None,
            lifetime: HOUR,
        }
    }

    fn client(&self) -> GrpcCa {
        GrpcCa::new(self.config()).unwrap()
    }

    /// Asks once and returns why nothing came of it.
    async fn refusal(&self) -> SvidError {
        SvidStore::new(Arc::new(self.client())).svid(&identity(WEB)).await.unwrap_err()
    }
}

async fn serve(
    listener: TcpListener,
    config: ServerConfig,
    greeting: Greeting,
    answer: Arc<Answer>,
    connections: Arc<AtomicUsize>,
) {
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let mut tasks = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (acceptor, answer) = (acceptor.clone(), Arc::clone(&answer));
        connections.fetch_add(1, SeqCst);
        tasks.spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let Some(stream) = greeting(stream).await else { return };
            let service = service_fn(move |request| call(Arc::clone(&answer), request));
            let server = http2::Builder::new(TokioExecutor::new());
            drop(server.serve_connection(TokioIo::new(stream), service).await);
        });
    }
}

async fn call(
    answer: Arc<Answer>,
    request: Request<Incoming>,
) -> Result<Response<tonic::body::Body>, Infallible> {
    struct Service(Arc<Answer>);
    impl server::UnaryService<CertificateRequest> for Service {
        type Response = CertificateResponse;
        type Future = BoxFuture<tonic::Response<CertificateResponse>, Status>;
        fn call(&mut self, request: tonic::Request<CertificateRequest>) -> Self::Future {
            let answer = (self.0)(request);
            Box::pin(async move { answer.await.map(tonic::Response::new) })
        }
    }
    assert_eq!(request.uri().path(), CREATE_CERTIFICATE);
    Ok(server::Grpc::new(ProstCodec::default()).unary(Service(answer), request).await)
}

/// Signs what `params` say for the key in the request.
fn sign(root: &TestRoot, request: &CertificateRequest, params: &CertificateParams) -> CertificateResponse {
    let csr = CertificateSigningRequestDer::from_pem_slice(request.csr.as_bytes()).unwrap();
    let csr = CertificateSigningRequestParams::from_der(&csr).unwrap();
    chain(&[root.sign(params, &csr.public_key), root.certificate.clone()])
}

fn chain(certificates: &[rustls::pki_types::CertificateDer<'_>]) -> CertificateResponse {
    CertificateResponse { cert_chain: certificates.iter().map(|one| certificate_pem(one)).collect() }
}

fn authority(error: &SvidError) -> &GrpcError {
    match error {
        SvidError::Authority { source, .. } => match &**source {
            CaError::Grpc(error) => error,
            other => panic!("{other}"),
        },
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn asks_as_istio_does_and_uses_what_comes_back() {
    let seen = Arc::new(Mutex::new(None));
    let notes = Arc::clone(&seen);
    let world = World::start(
        "localhost",
        |stream| Box::pin(async { Some(stream) }),
        move |root| {
            Arc::new(move |request| {
                let header =
                    |name: &str| request.metadata().get(name).map(|value| value.to_str().unwrap().to_owned());
                *notes.lock().unwrap() = Some((
                    header("authorization"),
                    header("clusterid"),
                    header("grpc-timeout"),
                    request.get_ref().clone(),
                ));
                let answer = sign(&root, request.get_ref(), &leaf(WEB));
                Box::pin(async { Ok(answer) })
            })
        },
    )
    .await;
    let ca = GrpcCa::new(GrpcConfig { cluster: Some("blue".to_owned()), ..world.config() }).unwrap();
    assert_eq!(ca.source(), format!("grpc https://localhost:{}", world.address.port()));
    let svid = SvidStore::new(Arc::new(ca)).svid(&identity(WEB)).await.unwrap();
    assert_eq!(svid.chain().len(), 1, "the root is not kept to be sent to peers");

    let (token, cluster, deadline, request) = seen.lock().unwrap().take().unwrap();
    assert_eq!(token.as_deref(), Some("Bearer a.b.c"));
    assert_eq!(cluster.as_deref(), Some("blue"));
    assert!(deadline.is_some(), "the server knows when nobody waits any more");
    assert_eq!(request.impersonated(), Some(WEB));
    assert_eq!(request.validity_duration, 3600);
    assert!(request.csr.starts_with("-----BEGIN CERTIFICATE REQUEST-----\n"), "{}", request.csr);
}

#[tokio::test]
async fn several_roots_in_the_last_element_are_no_part_of_the_chain() {
    let world = World::answering(|root, request| async move {
        let mut answer = sign(&root, &request, &leaf(WEB));
        let other = certificate_pem(&TestRoot::new("another root").certificate);
        answer.cert_chain.last_mut().unwrap().push_str(&other);
        Ok(answer)
    })
    .await;
    let svid = SvidStore::new(Arc::new(world.client())).svid(&identity(WEB)).await.unwrap();
    assert_eq!(svid.chain().len(), 1);
}

#[tokio::test]
async fn new_root_key_that_the_old_one_vouches_for_is_part_of_the_chain() {
    let world = World::answering(|root, request| async move {
        let mut bridge = CertificateParams::default();
        bridge.distinguished_name.push(DnType::CommonName, "a root");
        bridge.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        bridge.use_authority_key_identifier_extension = true;
        let bridge = TestRoot::new("a root").sign(&bridge, &KeyPair::generate().unwrap());
        let mut answer = sign(&root, &request, &leaf(WEB));
        answer.cert_chain.insert(1, certificate_pem(&bridge));
        Ok(answer)
    })
    .await;
    let svid = SvidStore::new(Arc::new(world.client())).svid(&identity(WEB)).await.unwrap();
    assert_eq!(svid.chain().len(), 2);
}

#[tokio::test]
async fn certificates_that_peers_would_refuse_are_refused() {
    let other_key = World::answering(|root, _| async move {
        Ok(chain(&[root.sign(&leaf(WEB), &KeyPair::generate().unwrap()), root.certificate.clone()]))
    });
    let error = other_key.await.refusal().await;
    assert!(matches!(error, SvidError::Rejected { source: Rejected::OtherKey, .. }), "{error}");

    let other_identity =
        World::answering(|root, request| async move { Ok(sign(&root, &request, &leaf(CLIENT))) });
    let error = other_identity.await.refusal().await;
    assert!(error.to_string().contains("sa/client"), "{error}");

    let expired = World::answering(|root, request| async move {
        let mut params = leaf(WEB);
        params.not_after = (SystemTime::now() - HOUR / 2).into();
        Ok(sign(&root, &request, &params))
    });
    let error = expired.await.refusal().await;
    assert!(
        matches!(error, SvidError::Rejected { source: Rejected::Unsound(TlsError::Expired { .. }), .. }),
        "{error}"
    );

    let unknown = World::answering(|_, request| async move {
        Ok(sign(&TestRoot::new("a root that nobody trusts"), &request, &leaf(WEB)))
    });
    let error = unknown.await.refusal().await;
    assert!(
        matches!(error, SvidError::Rejected { source: Rejected::Unsound(TlsError::UnknownIssuer), .. }),
        "{error}"
    );
}

#[tokio::test]
async fn answers_that_are_no_chain_are_refused() {
    let answers: [(&[&str], &str); 4] = [
        (&[], "no certificate in it"),
        (&["nonsense"], "no certificate in it"),
        (&["-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n"], "element 1"),
        (&["-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"; 20], "more than 8"),
    ];
    for (elements, says) in answers {
        let answer =
            CertificateResponse { cert_chain: elements.iter().map(|&text| text.to_owned()).collect() };
        let world = World::answering(move |_, _| std::future::ready(Ok(answer.clone()))).await;
        let error = world.refusal().await;
        let GrpcError::Answer { problem, .. } = authority(&error) else { panic!("{error}") };
        assert!(problem.contains(says), "{elements:?}: {problem}");
    }
}

#[tokio::test]
async fn a_refusal_names_the_address_what_was_said_and_what_to_do() {
    let token = "--ca-token";
    for (code, remedy) in [
        (Code::Unauthenticated, token),
        (Code::PermissionDenied, "trusts with a node"),
        (Code::Unavailable, "asked again later"),
        (Code::Unimplemented, "--ca-address"),
    ] {
        let world = World::answering(move |_, _| {
            std::future::ready(Err(Status::new(code, "because\nof \u{1b}[1mthis")))
        })
        .await;
        let text = world.refusal().await.to_string();
        assert!(text.contains(&format!("https://localhost:{}", world.address.port())), "{text}");
        assert!(text.contains(&format!("{code:?}")) && text.contains(remedy), "{text}");
        assert!(text.contains(r"because\nof \u{1b}[1mthis"), "what a stranger says is quoted: {text}");
    }
    let long = World::answering(|_, _| std::future::ready(Err(Status::internal("x".repeat(5000))))).await;
    let text = long.refusal().await.to_string();
    assert!(text.len() < 1000, "{} bytes", text.len());
}

#[tokio::test]
async fn servers_that_are_not_whom_they_should_be_get_no_token() {
    let asked = Arc::new(AtomicUsize::new(0));
    let start = async |name: &str| {
        let asked = Arc::clone(&asked);
        World::start(
            name,
            |stream| Box::pin(async { Some(stream) }),
            move |_| {
                Arc::new(move |_| {
                    asked.fetch_add(1, SeqCst);
                    Box::pin(std::future::ready(Err(Status::ok("never"))))
                })
            },
        )
        .await
    };
    let elsewhere = start("elsewhere").await;
    let text = elsewhere.refusal().await.to_string();
    assert!(text.contains("--ca-server-name"), "{text}");

    let world = start("localhost").await;
    let other = certificate_pem(&TestRoot::new("another root").certificate);
    fs::write(world.dir.path().join("other.pem"), other).unwrap();
    let config = GrpcConfig { server_roots: Some(world.dir.path().join("other.pem")), ..world.config() };
    let store = SvidStore::new(Arc::new(GrpcCa::new(config).unwrap()));
    let text = store.svid(&identity(WEB)).await.unwrap_err().to_string();
    assert!(text.contains("--ca-server-roots"), "{text}");
    assert_eq!(asked.load(SeqCst), 0);

    // The control: the same server under the name that it has.
    let config = GrpcConfig { server_name: Some("elsewhere".try_into().unwrap()), ..elsewhere.config() };
    let store = SvidStore::new(Arc::new(GrpcCa::new(config).unwrap()));
    store.svid(&identity(WEB)).await.unwrap_err();
    assert_eq!(asked.load(SeqCst), 1);
}

#[tokio::test]
async fn garbage_instead_of_http2_is_a_broken_connection() {
    let world = World::start(
        "localhost",
        |mut stream| {
            Box::pin(async move {
                stream.write_all(b"220 this is something else\r\n\r\n").await.unwrap();
                let mut rest = Vec::new();
                drop(stream.read_to_end(&mut rest).await);
                None
            })
        },
        |_| Arc::new(|_| Box::pin(std::future::ready(Err(Status::ok("never"))))),
    )
    .await;
    let error = world.refusal().await;
    assert!(matches!(authority(&error), GrpcError::Broken { .. }), "{error}");
}

#[tokio::test]
async fn garbage_instead_of_a_message_is_refused() {
    // Not through tonic, which encodes what it is given: plain HTTP/2 with a body of its own.
    let world = World::start(
        "localhost",
        |stream| {
            Box::pin(async move {
                let service = service_fn(|_: Request<Incoming>| async {
                    let body = Full::new(Bytes::from_static(b"\0\0\0\0\x04\xff\xff\xff\xff"));
                    let answer = Response::builder().header("content-type", "application/grpc");
                    Ok::<_, Infallible>(answer.body(body).unwrap())
                });
                let server = http2::Builder::new(TokioExecutor::new());
                drop(server.serve_connection(TokioIo::new(stream), service).await);
                None
            })
        },
        |_| Arc::new(|_| Box::pin(std::future::ready(Err(Status::ok("never"))))),
    )
    .await;
    let error = world.refusal().await;
    let text = authority(&error).to_string();
    assert!(text.contains("Internal") || text.contains("failed"), "{text}");
}

#[tokio::test]
async fn a_message_beyond_all_measure_is_refused() {
    let world = World::answering(|_, _| {
        std::future::ready(Ok(CertificateResponse { cert_chain: vec!["x".repeat(300 * 1024)] }))
    })
    .await;
    let error = world.refusal().await;
    assert!(authority(&error).to_string().contains("OutOfRange"), "{error}");
}

#[tokio::test]
async fn nobody_listening_is_said_so() {
    let world = World::answering(|_, _| std::future::ready(Err(Status::ok("never")))).await;
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let address = format!("https://localhost:{}", free.port()).parse().unwrap();
    let store = SvidStore::new(Arc::new(GrpcCa::new(GrpcConfig { address, ..world.config() }).unwrap()));
    let error = store.svid(&identity(WEB)).await.unwrap_err();
    assert!(matches!(authority(&error), GrpcError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains(&free.port().to_string()), "{error}");
}

#[tokio::test]
async fn a_server_that_never_answers_is_given_up_and_asked_anew() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let world = World::answering(move |root, request| {
        let first = counted.fetch_add(1, SeqCst) == 0;
        async move {
            if first {
                std::future::pending::<()>().await;
            }
            Ok(sign(&root, &request, &leaf(WEB)))
        }
    })
    .await;
    let store = SvidStore::new(Arc::new(world.client()));
    let error = store.svid(&identity(WEB)).await.unwrap_err();
    assert!(matches!(authority(&error), GrpcError::Silent { .. }), "{error}");
    until(async || store.svid(&identity(WEB)).await.is_ok()).await;
    assert_eq!(world.connections.load(SeqCst), 2, "not over the connection that did not answer");
}

#[tokio::test]
async fn a_connection_that_is_reset_is_opened_again() {
    let world = World::start(
        "localhost",
        |stream| {
            static SEEN: AtomicUsize = AtomicUsize::new(0);
            Box::pin(async move {
                if SEEN.fetch_add(1, SeqCst) > 0 {
                    return Some(stream);
                }
                // A reset instead of an end.
                let (stream, _) = stream.into_inner();
                socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
                None
            })
        },
        |root| {
            Arc::new(move |request| {
                let answer = sign(&root, request.get_ref(), &leaf(WEB));
                Box::pin(async { Ok(answer) })
            })
        },
    )
    .await;
    let store = SvidStore::new(Arc::new(world.client()));
    let error = store.svid(&identity(WEB)).await.unwrap_err();
    assert!(matches!(authority(&error), GrpcError::Broken { .. }), "{error}");
    until(async || store.svid(&identity(WEB)).await.is_ok()).await;
}

#[tokio::test]
async fn what_is_asked_at_once_shares_one_connection() {
    let world = World::answering(|root, request| async move {
        let who = request.impersonated().unwrap().to_owned();
        Ok(sign(&root, &request, &leaf(&who)))
    })
    .await;
    let store = SvidStore::new(Arc::new(world.client()));
    let mut asking = JoinSet::new();
    for number in 0..50 {
        let store = store.clone();
        let identity = identity(&format!("spiffe://cluster.local/ns/shop/sa/web-{number}"));
        asking.spawn(async move { store.svid(&identity).await.unwrap() });
    }
    assert_eq!(asking.join_all().await.len(), 50);
    assert_eq!(world.connections.load(SeqCst), 1);
}

#[tokio::test]
async fn token_and_roots_are_read_again() {
    let tokens = Arc::new(Mutex::new(String::new()));
    let notes = Arc::clone(&tokens);
    let world = World::start(
        "localhost",
        |stream| Box::pin(async { Some(stream) }),
        move |root| {
            Arc::new(move |request| {
                *notes.lock().unwrap() =
                    request.metadata().get("authorization").unwrap().to_str().unwrap().to_owned();
                let answer = sign(&root, request.get_ref(), &leaf(WEB));
                Box::pin(async { Ok(answer) })
            })
        },
    )
    .await;
    let ca = world.client();
    let (web, key) = (identity(WEB), KeyPair::generate().unwrap());
    let csr = Csr::new(&web, &key).unwrap();
    ca.sign(&csr, &web).await.unwrap();

    fs::write(world.dir.path().join("token"), "d.e.f").unwrap();
    until(async || ca.sign(&csr, &web).await.is_ok() && *tokens.lock().unwrap() == "Bearer d.e.f").await;

    let before = world.connections.load(SeqCst);
    let other = certificate_pem(&TestRoot::new("another root").certificate);
    fs::write(world.dir.path().join("roots.pem"), &other).unwrap();
    until(async || {
        ca.sign(&csr, &web).await.is_err_and(|error| error.to_string().contains("--ca-server-roots"))
    })
    .await;
    assert!(world.connections.load(SeqCst) > before, "new roots, new connection");
    assert_eq!(ca.trust().borrow().certificates().len(), 1);
    let both = certificate_pem(&world.root.certificate) + &other;
    fs::write(world.dir.path().join("roots.pem"), both).unwrap();
    until(async || ca.sign(&csr, &web).await.is_ok()).await;
    assert_eq!(ca.trust().borrow().certificates().len(), 2);
}

#[tokio::test]
async fn files_that_cannot_be_used_are_named_at_the_start() {
    let world = World::answering(|_, _| std::future::ready(Err(Status::ok("never")))).await;
    let missing = world.dir.path().join("missing");
    for config in [
        GrpcConfig { roots: missing.clone(), ..world.config() },
        GrpcConfig { server_roots: Some(missing.clone()), ..world.config() },
        GrpcConfig { token: missing.clone(), ..world.config() },
    ] {
        let error = GrpcCa::new(config).unwrap_err();
        assert!(error.to_string().contains("missing"), "{error}");
    }
    fs::write(&missing, "nonsense").unwrap();
    let error = GrpcCa::new(GrpcConfig { roots: missing, ..world.config() }).unwrap_err();
    assert!(matches!(error, CaError::Roots { .. }), "{error}");
}

async fn until(mut condition: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waiting).await.expect("the condition held in time");
}
