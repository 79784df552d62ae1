//! The hub's API, as the kubeconfig opens it: one call and its answer, and in which words it fails.
//!
//! Invariants: a call that changes something is sent again only if the hub says that nothing was changed; no answer is
//! waited for without end; what a call carried is never part of an error.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{Method, Request, Response, StatusCode};
use kube::client::{Body, ClientBuilder};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::Status;
use kube::{Client, Config};
use secrecy::SecretString;
use serde_json::Value;
use thiserror::Error;
use tokio::time::Instant;
use tower::BoxError;
use tower::util::MapErrLayer;

/// How long one answer may take: the longest question that a hub allows, and the way.
pub(crate) const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// How long a hub that is busy, or has no leader, is asked again: a few elections.
const PATIENCE: Duration = Duration::from_secs(15);
/// The longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

pub(crate) const JSON: &str = "application/json";
pub(crate) const MERGE_PATCH: &str = "application/merge-patch+json";
pub(crate) const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";

/// Why a call came to nothing.
#[derive(Debug, Error)]
pub(crate) enum Failure {
    /// The hub says no, and why.
    #[error("{}", refusal(.0))]
    Refused(Box<Status>),
    #[error("{what}: {why}; is it running, and is the server in the kubeconfig the right one?")]
    Unreachable { what: String, why: String },
    #[error("the hub did not answer within {ANSWER_WITHIN:?}")]
    Silent,
    #[error("the hub's answer to {path} cannot be read")]
    Answer { path: String, source: BoxError },
}

impl Failure {
    /// The HTTP status of a refusal.
    pub(crate) fn code(&self) -> Option<u16> {
        match self {
            Self::Refused(status) => Some(status.code),
            Self::Unreachable { .. } | Self::Silent | Self::Answer { .. } => None,
        }
    }

    pub(crate) fn is_not_found(&self) -> bool {
        self.code() == Some(404)
    }

    /// Whether the same question may be answered later.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            Self::Refused(status) => matches!(status.code, 429 | 503 | 504),
            Self::Unreachable { .. } | Self::Silent => true,
            Self::Answer { .. } => false,
        }
    }
}

/// A refusal in the hub's words; several broken fields stand on a line each.
fn refusal(status: &Status) -> String {
    let causes = status.details.as_ref().map(|details| details.causes.as_slice()).unwrap_or_default();
    let fields: Vec<_> = causes.iter().filter(|cause| !cause.field.is_empty()).collect();
    if fields.len() < 2 {
        return status.message.clone();
    }
    let head = status.message.split_once(" is invalid: ").map_or("the object", |(head, _)| head);
    let lines: Vec<String> = fields.iter().map(|cause| format!("\n  {}: {}", cause.field, cause.message)).collect();
    format!("{head} is invalid:{}", lines.concat())
}

/// The connection as a whole failed, not one call.
#[derive(Debug, Error)]
#[error("the hub at {url} cannot be reached")]
struct Unreachable {
    url: String,
    source: BoxError,
}

/// The kubeconfig to use: the one named, else the user's.
fn settings(named: Option<PathBuf>, home: Option<PathBuf>) -> Result<PathBuf> {
    match named.or_else(|| home.map(|home| home.join(".config/fluvial/kubeconfig"))) {
        Some(path) if path.exists() => Ok(path),
        Some(path) => bail!(
            "there is no kubeconfig at {}: give --kubeconfig, or make a hub by `fluvial hub init`",
            path.display()
        ),
        None => bail!("no home folder is known: give --kubeconfig"),
    }
}

/// Where the kubeconfig is that [`connect`] would use.
///
/// # Errors
/// If there is none.
pub(crate) fn kubeconfig(named: Option<PathBuf>) -> Result<PathBuf> {
    settings(named, std::env::var_os("HOME").map(PathBuf::from))
}

/// Connects as the kubeconfig says.
///
/// # Errors
/// If there is none, or it cannot be used.
pub(crate) async fn connect(named: Option<PathBuf>) -> Result<Client> {
    let path = kubeconfig(named)?;
    let shown = || format!("reading {}", path.display());
    let file = Kubeconfig::read_from(&path).with_context(shown)?;
    let mut config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.with_context(shown)?;
    // It would repeat calls whose outcome is unknown: [`call`] knows which may be.
    config.default_retry = false;
    let url = config.cluster_url.to_string().trim_end_matches('/').to_owned();
    let layer = MapErrLayer::new(move |source: BoxError| Unreachable { url: url.clone(), source });
    Ok(ClientBuilder::try_from(config).context("setting up the connection")?.with_layer(&layer).build())
}

/// The innermost cause, which says what happened.
fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

fn failed(path: &str, error: kube::Error) -> Failure {
    match error {
        kube::Error::Service(error) => {
            Failure::Unreachable { what: error.to_string(), why: root_cause(error.as_ref()) }
        }
        error => Failure::Answer { path: path.to_owned(), source: error.into() },
    }
}

/// Sends one request as it is; the answer's body is still on its way.
async fn send(client: &Client, request: Request<Vec<u8>>) -> Result<Response<Body>, Failure> {
    let path = request.uri().path().to_owned();
    let answer = tokio::time::timeout(ANSWER_WITHIN, client.send(request.map(Body::from))).await;
    let answer = answer.map_err(|_| Failure::Silent)?.map_err(|error| failed(&path, error))?;
    if answer.status().is_success() {
        return Ok(answer);
    }
    let code = answer.status();
    let text = collect(&path, answer).await?;
    Err(Failure::Refused(Box::new(read_status(code, &text))))
}

/// What a refusal says; a proxy's answer may be no `Status`.
fn read_status(code: StatusCode, text: &[u8]) -> Status {
    match serde_json::from_slice::<Status>(text) {
        Ok(status) if !status.message.is_empty() => status.with_code(code.as_u16()),
        _ => Status::failure(&format!("the hub answered {code}"), "").with_code(code.as_u16()),
    }
}

async fn collect(path: &str, answer: Response<Body>) -> Result<Vec<u8>, Failure> {
    let body = tokio::time::timeout(ANSWER_WITHIN, answer.into_body().collect_bytes()).await;
    let body = body.map_err(|_| Failure::Silent)?;
    body.map(Into::into).map_err(|error| Failure::Answer { path: path.to_owned(), source: error.into() })
}

/// One call: its body with a media type, and the media type wanted back.
#[derive(Debug, Clone)]
pub(crate) struct Call<'a> {
    pub method: Method,
    pub path: &'a str,
    pub content: Option<(&'static str, Vec<u8>)>,
    pub accept: &'static str,
}

impl Call<'_> {
    fn request(&self) -> Result<Request<Vec<u8>>, Failure> {
        let mut request = Request::builder().method(self.method.clone()).uri(self.path).header(ACCEPT, self.accept);
        let mut body = Vec::new();
        if let Some((media, bytes)) = &self.content {
            request = request.header(CONTENT_TYPE, *media);
            body.clone_from(bytes);
        }
        request.body(body).map_err(|error| Failure::Answer { path: self.path.to_owned(), source: error.into() })
    }

    /// How long to pause before the call may be sent again, if it may: reads always, writes where nothing was changed.
    fn pause(&self, failure: &Failure, attempt: u32) -> Option<Duration> {
        let Failure::Refused(status) = failure else { return None };
        let again = matches!(status.code, 429 | 503) || (self.method == Method::GET && status.code == 504);
        let asked = status.details.as_ref().map_or(0, |details| u64::from(details.retry_after_seconds));
        let pause = Duration::from_millis(100 << attempt.min(5)).max(Duration::from_secs(asked));
        again.then(|| pause.min(LONGEST_PAUSE))
    }
}

/// Makes a call and opens its answer, which is still to be read.
///
/// # Errors
/// See [`Failure`].
pub(crate) async fn open(client: &Client, call: Call<'_>) -> Result<Response<Body>, Failure> {
    let deadline = Instant::now() + PATIENCE;
    let mut attempt = 0;
    loop {
        let failure = match send(client, call.request()?).await {
            Ok(answer) => return Ok(answer),
            Err(failure) => failure,
        };
        match call.pause(&failure, attempt) {
            Some(pause) if Instant::now() + pause < deadline => tokio::time::sleep(pause).await,
            _ => return Err(failure),
        }
        attempt += 1;
    }
}

/// Makes a call and reads its answer.
///
/// # Errors
/// See [`Failure`].
pub(crate) async fn bytes(client: &Client, call: Call<'_>) -> Result<Vec<u8>, Failure> {
    let path = call.path;
    let answer = open(client, call).await?;
    collect(path, answer).await
}

/// Reads JSON; `accept` is [`JSON`] or [`TABLE`].
///
/// # Errors
/// See [`Failure`].
pub(crate) async fn get(client: &Client, path: &str, accept: &'static str) -> Result<Value, Failure> {
    let text = bytes(client, Call { method: Method::GET, path, content: None, accept }).await?;
    serde_json::from_slice(&text).map_err(|error| Failure::Answer { path: path.to_owned(), source: error.into() })
}

/// Sends JSON of a media type, and reads JSON.
///
/// # Errors
/// See [`Failure`].
pub(crate) async fn write(
    client: &Client,
    method: Method,
    path: &str,
    content: Option<(&'static str, &Value)>,
) -> Result<Value, Failure> {
    let content = content.map(|(media, body)| (media, body.to_string().into_bytes()));
    let text = bytes(client, Call { method, path, content, accept: JSON }).await?;
    serde_json::from_slice(&text).map_err(|error| Failure::Answer { path: path.to_owned(), source: error.into() })
}

/// Sends a JSON body and gives the answer's text.
///
/// # Errors
/// With what the hub says of it.
pub(crate) async fn post(client: &Client, path: &str, body: &Value) -> Result<String> {
    let content = Some((JSON, serde_json::to_vec(body).context("writing the request")?));
    let text = bytes(client, Call { method: Method::POST, path, content, accept: "*/*" }).await?;
    String::from_utf8(text).context("reading the hub's answer")
}

/// A path with a query string.
pub(crate) fn with_query<'a>(path: &str, pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    query.extend_pairs(pairs);
    match query.finish() {
        query if query.is_empty() => path.to_owned(),
        query => format!("{path}?{query}"),
    }
}

/// Writes a file that only its owner may read, for it holds a key.
///
/// # Errors
/// If it cannot be written.
pub(crate) fn write_private(path: &Path, text: &str) -> Result<()> {
    if let Some(folder) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    }
    fluvial_certs::files::write_secret(path, &SecretString::from(text))
        .with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_kubeconfig_named_comes_before_the_users_own() {
        let folder = std::env::temp_dir().join(format!("fluvial-settings-{}", std::process::id()));
        let own = folder.join(".config/fluvial/kubeconfig");
        std::fs::create_dir_all(own.parent().unwrap()).unwrap();
        let named = folder.join("named");
        std::fs::write(&own, "").unwrap();
        std::fs::write(&named, "").unwrap();
        assert_eq!(settings(Some(named.clone()), Some(folder.clone())).unwrap(), named);
        assert_eq!(settings(None, Some(folder.clone())).unwrap(), own);
        assert!(settings(Some(folder.join("absent")), Some(folder.clone())).is_err());
        assert!(settings(None, None).is_err());
        std::fs::remove_dir_all(folder).unwrap();
    }

    fn refused(status: Value) -> Failure {
        Failure::Refused(serde_json::from_value(status).unwrap())
    }

    #[test]
    fn several_broken_fields_stand_on_a_line_each() {
        let cause = |field: &str, message: &str| json!({ "field": field, "message": message });
        let status = |causes: Value| json!({ "code": 422, "message": "Storage.fluvial.io \"s\" is invalid: all of it", "details": { "causes": causes } });
        let one = refused(status(json!([cause("spec.uri", "no")])));
        assert_eq!(one.to_string(), "Storage.fluvial.io \"s\" is invalid: all of it");
        let two = refused(status(json!([cause("spec.uri", "no"), cause("spec.cluster", "none")])));
        assert_eq!(two.to_string(), "Storage.fluvial.io \"s\" is invalid:\n  spec.uri: no\n  spec.cluster: none");
    }

    #[test]
    fn a_write_of_unknown_outcome_is_not_sent_again() {
        let call = |method| Call { method, path: "/", content: None, accept: JSON };
        let failure = |code: u16| refused(json!({ "code": code, "message": "m" }));
        assert_eq!(call(Method::POST).pause(&failure(504), 0), None);
        assert_eq!(call(Method::POST).pause(&failure(503), 0), Some(Duration::from_millis(100)));
        assert_eq!(call(Method::GET).pause(&failure(504), 0), Some(Duration::from_millis(100)));
        assert_eq!(call(Method::GET).pause(&failure(404), 0), None);
        assert_eq!(call(Method::GET).pause(&failure(429), 30), Some(LONGEST_PAUSE));
    }

    #[test]
    fn an_answer_that_is_no_status_is_named_by_its_code() {
        let status = read_status(StatusCode::BAD_GATEWAY, b"<html>");
        assert_eq!((status.code, status.message.as_str()), (502, "the hub answered 502 Bad Gateway"));
    }

    #[test]
    fn query_values_are_escaped() {
        assert_eq!(with_query("/a", [("path", "x y/ü&"), ("n", "1")]), "/a?path=x+y%2F%C3%BC%26&n=1");
        assert_eq!(with_query("/a", []), "/a");
    }
}
