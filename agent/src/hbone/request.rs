//! The CONNECT request: how it is written, and what a server takes from one.

use std::{
    fmt::Write,
    net::{IpAddr, SocketAddr},
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version,
    header::FORWARDED,
    uri::{self, Authority},
};

/// What a client asks for.
#[derive(Clone, Debug)]
pub struct ConnectRequest {
    /// What the application listens on.
    pub authority: SocketAddr,
    /// Who the original client is (RFC 7239's `for`). Believed for logs at most.
    pub forwarded: Option<SocketAddr>,
    /// W3C baggage that names the source workload. Left out where it is no valid header value.
    pub baggage: Option<String>,
}

impl ConnectRequest {
    /// Builds the request: only `:method` and `:authority`, as RFC 9113 §8.5 and ztunnel have it.
    pub(super) fn to_http(&self) -> Result<Request<()>, http::Error> {
        let mut target = uri::Parts::default();
        target.authority = Some(Authority::from_maybe_shared(Bytes::from(self.authority.to_string()))?);
        let mut request = Request::new(());
        *request.method_mut() = Method::CONNECT;
        *request.version_mut() = Version::HTTP_2;
        *request.uri_mut() = Uri::from_parts(target)?;
        let headers = request.headers_mut();
        if let Some(client) = self.forwarded {
            let mut value = String::with_capacity(60);
            // Writing to a string cannot fail.
            let _ = write!(value, "for=\"{client}\"");
            // Each connection has another: a literal that no table of HPACK remembers (RFC 7541 §6.2.3). A table full of them is
            // searched from end to end for the next, and has no room for the baggage, which is the same every time.
            put(headers, FORWARDED, value, true);
        }
        if let Some(baggage) = &self.baggage {
            put(headers, BAGGAGE, baggage.clone(), false);
        }
        Ok(request)
    }
}

/// Reads the first `for` of a `forwarded` header (RFC 7239 §4), where it is an address with a port.
pub(super) fn forwarded_for(header: &str) -> Option<SocketAddr> {
    let pairs = header.split(',').next()?.split(';');
    let node = pairs
        .filter_map(|pair| pair.trim().split_once('='))
        .find(|(key, _)| key.eq_ignore_ascii_case("for"))?
        .1;
    node.trim_matches('"').parse().ok()
}

/// What a request's authority says, checked against the address that the connection was made to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Target {
    /// This very pod.
    Address(SocketAddr),
    /// A service's name: somebody who knows names must look it up.
    Name,
}

/// Reads the authority of a request to the pod at `local`; `None` where the answer is 400.
///
/// An address must be `local` itself: a peer that is wrong about who lives here (the address has changed hands, say)
/// must not reach whoever does.
pub(super) fn target(request: &Request<()>, local: IpAddr) -> Option<Target> {
    if request.method() != Method::CONNECT {
        return None;
    }
    let authority = request.uri().authority()?;
    let port = authority.port_u16().filter(|port| *port != 0)?;
    let host = authority.host();
    if host.is_empty() || authority.as_str().contains('@') {
        return None;
    }
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    match bare.unwrap_or(host).parse::<IpAddr>() {
        Ok(ip) if ip.is_ipv6() != bare.is_some() => None,
        Ok(ip) if ip.to_canonical() == local.to_canonical() => {
            Some(Target::Address(SocketAddr::new(ip.to_canonical(), port)))
        }
        Ok(_) => None,
        Err(_) if bare.is_some() => None,
        Err(_) => Some(Target::Name),
    }
}

/// Adds a header whose value may come from outside; one that is no valid value is left out, for none of them decides
/// anything.
fn put(headers: &mut HeaderMap, name: HeaderName, value: String, never_indexed: bool) {
    if let Ok(mut value) = HeaderValue::from_maybe_shared(Bytes::from(value)) {
        value.set_sensitive(never_indexed);
        headers.insert(name, value);
    }
}

/// <https://www.w3.org/TR/baggage/>
pub(super) const BAGGAGE: HeaderName = HeaderName::from_static("baggage");

#[cfg(test)]
mod tests {
    use super::*;

    fn check(method: Method, authority: &'static str, local: &str, expected: Option<&str>) {
        let mut parts = uri::Parts::default();
        parts.authority = Some(Authority::from_static(authority));
        let mut request = Request::new(());
        *request.method_mut() = method;
        *request.uri_mut() = Uri::from_parts(parts).unwrap();
        assert_eq!(target(&request, local.parse().unwrap()), expected.map(read), "{authority} at {local}");
    }

    fn read(text: &str) -> Target {
        text.parse().map_or(Target::Name, Target::Address)
    }

    #[test]
    fn of_the_headers_only_what_is_the_same_every_time_is_kept_in_tables() {
        let request = ConnectRequest {
            authority: "10.0.0.7:80".parse().unwrap(),
            forwarded: Some("10.0.0.5:40000".parse().unwrap()),
            baggage: Some("service.name=front".to_owned()),
        };
        let request = request.to_http().unwrap();
        assert!(request.headers()[FORWARDED].is_sensitive());
        assert!(!request.headers()[BAGGAGE].is_sensitive());
    }

    #[test]
    fn the_address_of_the_pod_is_taken_in_every_form() {
        check(Method::CONNECT, "10.0.0.7:80", "10.0.0.7", Some("10.0.0.7:80"));
        check(Method::CONNECT, "10.0.0.7:80", "::ffff:10.0.0.7", Some("10.0.0.7:80"));
        check(Method::CONNECT, "[::ffff:10.0.0.7]:80", "10.0.0.7", Some("10.0.0.7:80"));
        check(Method::CONNECT, "[fd00::7]:80", "fd00::7", Some("[fd00::7]:80"));
        check(Method::CONNECT, "10.0.0.7:15008", "10.0.0.7", Some("10.0.0.7:15008"));
    }

    #[test]
    fn a_name_is_passed_up() {
        check(Method::CONNECT, "web.shop.svc.cluster.local:80", "10.0.0.7", Some("a name"));
    }

    #[test]
    fn another_address_or_method_or_form_is_refused() {
        check(Method::CONNECT, "10.0.0.8:80", "10.0.0.7", None);
        check(Method::CONNECT, "127.0.0.1:80", "10.0.0.7", None);
        check(Method::CONNECT, "[fd00::8]:80", "fd00::7", None);
        check(Method::CONNECT, "[::1]:80", "fd00::7", None);
        check(Method::CONNECT, "10.0.0.7", "10.0.0.7", None);
        check(Method::CONNECT, "10.0.0.7:0", "10.0.0.7", None);
        check(Method::CONNECT, "10.0.0.7:65536", "10.0.0.7", None);
        check(Method::CONNECT, "[10.0.0.7]:80", "10.0.0.7", None);
        check(Method::CONNECT, "user@10.0.0.7:80", "10.0.0.7", None);
        check(Method::CONNECT, ":80", "10.0.0.7", None);
        check(Method::GET, "10.0.0.7:80", "10.0.0.7", None);
    }

    #[test]
    fn a_request_has_a_method_an_authority_and_what_was_asked_for() {
        let request = ConnectRequest {
            authority: "[fd00::7]:80".parse().unwrap(),
            forwarded: Some("10.0.0.1:4711".parse().unwrap()),
            baggage: Some("k8s.namespace.name=shop".to_owned()),
        };
        let http = request.to_http().unwrap();
        assert_eq!(http.method(), Method::CONNECT);
        assert_eq!(http.uri().to_string(), "[fd00::7]:80");
        assert_eq!((http.uri().scheme(), http.uri().path_and_query()), (None, None));
        assert_eq!(http.headers()["forwarded"], "for=\"10.0.0.1:4711\"");
        assert_eq!(http.headers()["baggage"], "k8s.namespace.name=shop");
    }

    #[test]
    fn a_header_that_could_smuggle_lines_is_left_out() {
        let request = ConnectRequest {
            authority: "10.0.0.7:80".parse().unwrap(),
            forwarded: None,
            baggage: Some("a=b\r\nx: y".to_owned()),
        };
        assert!(request.to_http().unwrap().headers().is_empty());
    }
}
