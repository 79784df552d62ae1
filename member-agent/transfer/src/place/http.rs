//! What all stores behind HTTP share: the client, deadlines, and trying again what may pass.

use std::time::Duration;

use reqwest::redirect::Policy;

use crate::TransferError;

/// Tries of one request. With the pauses below that is about 20 s of trouble that a copy does not notice.
pub(super) const TRIES: u32 = 6;
/// The pause after the first failure; doubled after each, up to [`LONGEST_PAUSE`], halved to doubled at random.
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// The longest pause.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// How long one request may take: the base, and what its body needs at 1 MiB/s.
pub(super) const REQUEST_LIMIT: Duration = Duration::from_secs(30);

/// How long connecting may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// A client with connections of its own.
///
/// # Errors
/// Why it cannot be built.
pub(super) fn client(redirect: Policy) -> Result<reqwest::Client, String> {
    // The first provider that is installed stays; every crate of the workspace installs this one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .connect_timeout(CONNECT_LIMIT)
        .pool_idle_timeout(Duration::from_secs(20))
        .redirect(redirect)
        .build()
        .map_err(|error| format!("the HTTP client cannot be built: {error}"))
}

/// The time for a request with a body of so many bytes, either way.
pub(super) fn body_limit(bytes: u64) -> Duration {
    REQUEST_LIMIT + Duration::from_secs(bytes >> 20)
}

/// Does a request until it succeeds, fails for good, or has been tried often enough.
///
/// # Errors
/// Of the last try.
pub(super) async fn retried<T, F>(mut request: impl FnMut() -> F) -> Result<T, TransferError>
where
    F: Future<Output = Result<T, TransferError>>,
{
    let mut pause = FIRST_PAUSE;
    let mut tried = 1;
    loop {
        let error = match request().await {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        if !error.is_transient() || matches!(error, TransferError::Changed { .. }) || tried == TRIES {
            return Err(error);
        }
        tracing::debug!(error = &error as &dyn std::error::Error, tried, "request failed, trying again");
        tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.5))).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
        tried += 1;
    }
}

/// The last cause of an error: the one that tells something, and no URL, which may hold a signature or a token.
pub(super) fn innermost(error: &dyn std::error::Error) -> String {
    let mut at = error;
    while let Some(source) = at.source() {
        at = source;
    }
    at.to_string()
}
