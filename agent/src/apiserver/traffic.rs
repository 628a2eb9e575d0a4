//! What goes over the client, by resource: whether a watch is open, and when the API server last said anything. The watches
//! themselves do not tell: bookmarks and a watch that is open again show in nothing else.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Instant,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, combinators::MapFrame};
use hyper::body::{Body, Frame};
use tower::{Layer, Service};

/// What goes over a client. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Traffic(Arc<Mutex<BTreeMap<String, Watch>>>);

/// What goes over the watches and lists of one resource.
#[derive(Clone, Copy, Debug, Default)]
pub struct Watch {
    /// How many watches are open.
    pub open: usize,
    /// When the last of them was closed, or could not be opened.
    pub closed: Option<Instant>,
    /// When anything was read last.
    pub heard: Option<Instant>,
    /// How much was read, as it came out of TLS.
    pub bytes: u64,
}

/// A service that counts.
#[derive(Debug)]
pub struct Counted<S> {
    inner: S,
    traffic: Traffic,
}

/// A watch, for as long as its answer is being read.
struct Open {
    traffic: Traffic,
    resource: String,
    is_watch: bool,
}

impl Traffic {
    /// Returns what goes over the watches and lists of a resource, named by its plural.
    pub fn watch(&self, resource: &str) -> Watch {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(resource).copied().unwrap_or_default()
    }

    fn note(&self, resource: &str, change: impl FnOnce(&mut Watch)) {
        let mut resources = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // The paths of single objects end in their names.
        if resources.contains_key(resource) || resources.len() < RESOURCES {
            change(resources.entry(resource.to_owned()).or_default());
        }
    }
}

impl Open {
    fn heard(&self, bytes: usize) {
        self.traffic.note(&self.resource, |watch| {
            watch.heard = Some(Instant::now());
            watch.bytes += bytes as u64;
        });
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if self.is_watch {
            self.traffic.note(&self.resource, |watch| {
                watch.open = watch.open.saturating_sub(1);
                watch.closed = Some(Instant::now());
            });
        }
    }
}

impl<S> Layer<S> for Traffic {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Counted<S> {
        Counted { inner, traffic: self.clone() }
    }
}

type OnFrame = Box<dyn FnMut(Frame<Bytes>) -> Frame<Bytes> + Send>;
type Answer<T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send>>;

impl<S, Q, B> Service<Request<Q>> for Counted<S>
where
    S: Service<Request<Q>, Response = Response<B>>,
    S::Future: Send + 'static,
    B: Body<Data = Bytes>,
{
    type Response = Response<MapFrame<B, OnFrame>>;
    type Error = S::Error;
    type Future = Answer<Self::Response, S::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        let is_read = request.method() == http::Method::GET;
        let is_watch = request.uri().query().is_some_and(|query| query.contains("watch=true"));
        let resource = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        let traffic = self.traffic.clone();
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            let is_watch = is_read && is_watch && answer.status().is_success();
            let open = Open { traffic, resource, is_watch };
            if is_watch {
                open.traffic.note(&open.resource, |watch| watch.open += 1);
            }
            Ok(answer.map(|body| {
                let on_frame: OnFrame = Box::new(move |frame| {
                    if is_read {
                        open.heard(frame.data_ref().map_or(0, Bytes::len));
                    }
                    frame
                });
                body.map_frame(on_frame)
            }))
        })
    }
}

/// Resources that are counted; more than anybody watches.
const RESOURCES: usize = 64;
