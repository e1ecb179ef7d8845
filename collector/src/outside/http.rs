//! `/metrics`, `/healthz` and `/readyz` on a local TCP port. Off unless the configuration names an address.
//!
//! Whoever connects is a stranger: hyper reads the request, everything has a bound, a connection serves one request and
//! is closed. Answers come from `Lookout`; nothing can be changed through this port.

use super::{Lookout, PICTURE_AGE_MAX, metrics};
use crate::stop::Stop;
use anyhow::Context;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// Connections at a time; more wait in the kernel until one has ended.
pub const CONNECTIONS_MAX: usize = 32;
/// Request line and headers: the least that hyper takes. Bytes.
pub const HEAD_BYTES_MAX: usize = 8 << 10;
/// Headers of one request.
pub const HEADERS_MAX: usize = 64;
/// For the head to arrive.
pub const HEAD_TIME_MAX: Duration = Duration::from_secs(5);
/// For the whole connection: head, answer, and the client's taking it.
pub const CONNECTION_TIME_MAX: Duration = Duration::from_secs(10);
/// A pause after a failed accept, so that a lack of descriptors is no busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const _: () = assert!(HEAD_TIME_MAX.as_millis() < CONNECTION_TIME_MAX.as_millis());

const PLAIN: &str = "text/plain; charset=utf-8";

/// Takes the port. Needs a tokio runtime.
///
/// # Errors
/// One sentence that names the address.
pub fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let next = "stop what uses it (`ss -ltnp`), or write another `listen` in [metrics]";
    let listener = std::net::TcpListener::bind(address)
        .with_context(|| format!("could not listen for metrics on TCP {address}; {next}"))?;
    listener.set_nonblocking(true).context("could not use the metrics' socket")?;
    if !address.ip().is_loopback() {
        tracing::warn!(
            %address,
            "metrics are open to everybody who reaches this address: they have no password and no encryption; \
             let a firewall or a proxy decide who may"
        );
    }
    TcpListener::from_std(listener).context("could not use the metrics' socket")
}

/// Serves until told to stop. Safe to drop.
pub async fn serve(listener: TcpListener, lookout: Lookout, mut stop: Stop) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.wait() => return,
            accepted = accept(&listener, &places) => accepted,
        };
        let Some((stream, place)) = accepted else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let lookout = lookout.clone();
        drop(tokio::spawn(async move {
            converse(stream, lookout).await;
            drop(place);
        }));
    }
}

async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> Option<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let place = places.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => Some((stream, place)),
        Err(error) => {
            tracing::warn!(%error, "could not accept a request for metrics; trying again");
            None
        }
    }
}

async fn converse(stream: TcpStream, lookout: Lookout) {
    let service = service_fn(move |request| answer(request, lookout.clone()));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME_MAX)
        .keep_alive(false)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .serve_connection(TokioIo::new(stream), service);
    match timeout(CONNECTION_TIME_MAX, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a request for metrics came to nothing"),
        Err(_) => tracing::debug!("a request for metrics took too long"),
    }
}

async fn answer(request: Request<Incoming>, lookout: Lookout) -> Result<Response<String>, Infallible> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return Ok(response);
    }
    Ok(match request.uri().path() {
        "/metrics" => blocking(move || metrics(&lookout)).await,
        "/healthz" => probe(lookout.alive()),
        "/readyz" => blocking(move || probe(lookout.ready())).await,
        "/" => text(StatusCode::OK, "/metrics\n/healthz\n/readyz"),
        _ => text(StatusCode::NOT_FOUND, "there are /metrics, /healthz and /readyz"),
    })
}

/// What reads files does not hold up the network.
async fn blocking(work: impl FnOnce() -> Response<String> + Send + 'static) -> Response<String> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|_| text(StatusCode::SERVICE_UNAVAILABLE, "the collector is stopping"))
}

fn metrics(lookout: &Lookout) -> Response<String> {
    match lookout.look(PICTURE_AGE_MAX) {
        Ok(picture) => {
            let mut response = text(StatusCode::OK, "");
            *response.body_mut() = metrics::render(&picture);
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(metrics::CONTENT_TYPE));
            response
        }
        Err(error) => {
            tracing::warn!(error = %format!("{error:#}"), "could not make metrics");
            text(StatusCode::SERVICE_UNAVAILABLE, "the register can't be read; see the collector's log")
        }
    }
}

fn probe(result: Result<(), String>) -> Response<String> {
    match result {
        Ok(()) => text(StatusCode::OK, "ok"),
        Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, &why),
    }
}

fn text(status: StatusCode, line: &str) -> Response<String> {
    let mut response = Response::new(format!("{line}\n"));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(PLAIN));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
