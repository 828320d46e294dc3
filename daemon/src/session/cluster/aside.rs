//! Requests that may block: before one is sent, a credential plugin may run for
//! as long as a login takes, and kube waits for it without yielding.

use std::task::{Context, Poll};

use futures::future::BoxFuture;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tower::{BoxError, Service};

/// Has another thread wait for the answers of a service, since one thread
/// carries all flows of a session.
#[derive(Clone)]
pub(super) struct Aside<S> {
    service: S,
}

impl<S> Aside<S> {
    pub(super) fn new(service: S) -> Self {
        Self { service }
    }
}

impl<S, R> Service<R> for Aside<S>
where
    S: Service<R, Error = BoxError>,
    S::Future: Send + 'static,
    S::Response: Send + 'static,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<S::Response, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> Self::Future {
        let answer = self.service.call(request);
        Box::pin(async move {
            // Whoever no longer waits for the answer takes the request back.
            let given_up = CancellationToken::new();
            let _guard = given_up.clone().drop_guard();
            let runtime = Handle::current();
            let waiting = tokio::task::spawn_blocking(move || {
                runtime.block_on(given_up.run_until_cancelled_owned(answer))
            });
            match waiting.await? {
                Some(answer) => answer,
                None => Err("the request was given up".into()),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tower::{ServiceExt, service_fn};

    use super::*;

    #[tokio::test]
    async fn a_request_that_blocks_stops_nothing_else() {
        let (answer_tx, answer_rx) = std::sync::mpsc::channel();
        let answer_rx = std::sync::Arc::new(std::sync::Mutex::new(answer_rx));
        let service = service_fn(move |(): ()| {
            let answer = answer_rx.clone();
            async move { Ok::<u8, BoxError>(answer.lock().unwrap().recv()?) }
        });
        let request = Aside::new(service).oneshot(());
        let other = async {
            tokio::task::yield_now().await;
            answer_tx.send(7).unwrap();
        };
        let both = async { tokio::join!(request, other) };
        let (answer, ()) = tokio::time::timeout(Duration::from_secs(10), both)
            .await
            .unwrap();
        assert_eq!(answer.unwrap(), 7);
    }
}
