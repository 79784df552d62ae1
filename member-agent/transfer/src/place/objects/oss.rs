//! Alibaba Cloud OSS: `oss://BUCKET/PREFIX`.
//!
//! Requests are signed here, below OpenDAL, for two reasons. OpenDAL leaves the metadata out of the request that begins a file
//! in parts, where OSS wants them: a file would come without its mode and time. And it signs by version 1 alone, which OSS
//! no longer offers for new buckets: with a region requests are signed by version 4 ("Guide to upgrading from Signature V1 to
//! Signature V4" in its developer reference).
//!
//! ETags are made of contents: what is written again with the same bytes and other metadata has the same version.

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response};
use opendal::{Buffer, Error, ErrorKind, HttpBody, HttpTransport, HttpTransporter, Operator, services};
use opendal_http_transport_reqwest::ReqwestTransport;
use reqsign_aliyun_oss::{Credential, RequestSigner, SigningVersion, StaticCredentialProvider};
use reqsign_core::{Context, Signer};
use reqwest::redirect::Policy;

use super::Objects;
use super::manner::{Manner, Version};
use super::open::{Opened, endpoint_of, known_options, refuses, split};
use crate::TransferError;
use crate::location::Location;
use crate::place::PartLimits;
use crate::place::dal::Dal;
use crate::place::http::client;

/// The options that are known.
const OPTIONS: [&str; 6] =
    ["endpoint", "region", "addressing_style", "access_key_id", "access_key_secret", "security_token"];
/// Metadata of OSS have letters, digits and `-` in their names.
const MANNER: Manner = Manner {
    version: Version::ETag,
    mode: "fluvial-mode",
    kind: "fluvial-kind",
    parts: PartLimits { smallest: 1 << 20, most: 10_000, in_order: true },
    page: 1000,
    refuses,
};
/// What stands before the names of metadata.
const METADATA: &str = "x-oss-meta-";

impl Objects {
    /// A prefix of a bucket of OSS: `oss://BUCKET/PREFIX`. Options are OpenDAL's: `endpoint` (else the public one of the
    /// region), `addressing_style` (`virtual` or `path`) and, among the secrets, `access_key_id`, `access_key_secret` and
    /// `security_token`; without keys, requests are not signed. With `region` (`cn-hangzhou`) they are signed by version 4.
    ///
    /// # Errors
    /// When the URI or an option cannot be used.
    pub(crate) fn oss(location: &Location, rest: &str) -> Result<Self, TransferError> {
        let client = client(Policy::none());
        let client = client.map_err(|why| TransferError::BadLocation { uri: location.shown(), why })?;
        Self::oss_over(location, rest, HttpTransporter::new(ReqwestTransport::new(client)))
    }

    fn oss_over(location: &Location, rest: &str, inner: HttpTransporter) -> Result<Self, TransferError> {
        let bad = |why: String| TransferError::BadLocation { uri: location.shown(), why };
        let Opened { bucket, prefix } = split(location, rest, "oss://bucket/prefix")?;
        known_options(location, &OPTIONS)?;
        let region = location.option("region");
        let public = region.map(|region| format!("https://oss-{region}.aliyuncs.com"));
        let endpoint =
            endpoint_of(location, public)?.ok_or_else(|| bad("option `region` or `endpoint` is needed".to_owned()))?;
        let style = location.option("addressing_style").unwrap_or("virtual");
        if !["virtual", "path"].contains(&style) {
            return Err(bad("option `addressing_style` must be `virtual` or `path`".to_owned()));
        }
        let signer = signer(location, bucket, region).map_err(|why| bad(why.to_owned()))?;
        // OpenDAL does not sign: it would look for keys in the environment of the agent, too.
        let builder = services::Oss::default().root("/").bucket(bucket).endpoint(&endpoint);
        let builder = builder.addressing_style(style).skip_signature();
        let operator = Operator::new(builder).map_err(|error| bad(error.message().to_owned()))?;
        let transport = Transport { inner, signer, metadata: HeaderMap::new() };
        let dal = Dal::over(operator, HttpTransporter::new(transport.clone()), location.shown());
        Ok(Self::new(dal, prefix, MANNER, Some(transport)))
    }
}

/// What signs with the keys of a location; nothing without keys.
fn signer(location: &Location, bucket: &str, region: Option<&str>) -> Result<Option<Signer<Credential>>, &'static str> {
    let token = location.option("security_token");
    let keys = match (location.option("access_key_id"), location.option("access_key_secret")) {
        (Some(id), Some(secret)) => StaticCredentialProvider::new(id, secret),
        (None, None) if token.is_some() => return Err("`security_token` is given without keys"),
        (None, None) => return Ok(None),
        _ => return Err("of `access_key_id` and `access_key_secret` one is given without the other"),
    };
    let keys = match token {
        Some(token) => keys.with_security_token(token),
        None => keys,
    };
    let by = RequestSigner::new(bucket);
    let by = match region {
        Some(region) => by.with_signing_version(SigningVersion::V4).with_region(region),
        None => by,
    };
    Ok(Some(Signer::new(Context::new(), keys, by)))
}

/// Sends requests, signed, and with its metadata the one that begins a file in parts.
#[derive(Clone)]
pub(super) struct Transport {
    inner: HttpTransporter,
    signer: Option<Signer<Credential>>,
    metadata: HeaderMap,
}

impl Transport {
    /// The same store for one file in parts.
    pub(super) fn beginning_with(&self, operator: &Operator, metadata: &[(String, String)]) -> Operator {
        let headers = metadata.iter().filter_map(|(name, value)| {
            let name = HeaderName::from_bytes(format!("{METADATA}{name}").as_bytes()).ok()?;
            Some((name, HeaderValue::from_str(value).ok()?))
        });
        let transport = HttpTransporter::new(Self { metadata: headers.collect(), ..self.clone() });
        let context = operator.base_context().clone().with_http_transport(transport);
        operator.clone().with_context(context)
    }
}

impl HttpTransport for Transport {
    async fn fetch(&self, request: Request<Buffer>) -> opendal::Result<Response<HttpBody>> {
        let (mut parts, body) = request.into_parts();
        if parts.method == Method::POST && parts.uri.query() == Some("uploads") {
            parts.headers.extend(self.metadata.clone());
        }
        if let Some(signer) = &self.signer {
            let signed = signer.sign(&mut parts, None).await;
            signed.map_err(|_| Error::new(ErrorKind::ConfigInvalid, "no request can be signed with these keys"))?;
        }
        self.inner.fetch(Request::from_parts(parts, body)).await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use fluvial_model::manifest::RelativePath;
    use http::request::Parts;

    use super::*;
    use crate::place::Place as _;

    /// Keeps the heads of requests and answers none.
    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<Parts>>>);

    impl HttpTransport for Kept {
        async fn fetch(&self, request: Request<Buffer>) -> opendal::Result<Response<HttpBody>> {
            self.0.lock().unwrap().push(request.into_parts().0);
            Err(Error::new(ErrorKind::Unexpected, "no answer"))
        }
    }

    /// What is sent for a file `a`, with these options.
    async fn sent(options: &[(&str, &str)]) -> (String, String, String) {
        let mut location = Location::new("oss://bucket/x");
        for (key, value) in options {
            location.options.insert((*key).into(), (*value).into());
        }
        let kept = Kept::default();
        let place = Objects::oss_over(&location, "bucket/x", HttpTransporter::new(kept.clone())).unwrap();
        place.stat(&RelativePath::parse("a").unwrap()).await.unwrap_err();
        let heads = kept.0.lock().unwrap();
        let header = |name: &str| heads[0].headers.get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
        (heads[0].uri.to_string(), header("authorization"), header("x-oss-security-token"))
    }

    #[tokio::test]
    async fn the_bucket_stands_in_the_host_and_the_region_in_the_signature() {
        let keys = [("access_key_id", "id"), ("access_key_secret", "secret")];
        let (uri, signature, _) = sent(&[keys[0], keys[1], ("region", "cn-hangzhou")]).await;
        assert_eq!(uri, "https://bucket.oss-cn-hangzhou.aliyuncs.com/x/a");
        assert!(signature.starts_with("OSS4-HMAC-SHA256 Credential=id/"), "{signature}");
        assert!(signature.contains("/cn-hangzhou/oss/aliyun_v4_request,"), "{signature}");
        let endpoint = ("endpoint", "oss.example.org:8080/");
        let (uri, signature, token) = sent(&[keys[0], keys[1], endpoint, ("security_token", "t")]).await;
        assert_eq!((uri.as_str(), token.as_str()), ("https://bucket.oss.example.org:8080/x/a", "t"));
        assert!(signature.starts_with("OSS id:"), "{signature}");
        let (uri, signature, _) = sent(&[endpoint, ("addressing_style", "path")]).await;
        assert_eq!((uri.as_str(), signature.as_str()), ("https://oss.example.org:8080/bucket/x/a", ""));
    }
}
