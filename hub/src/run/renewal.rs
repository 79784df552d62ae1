//! This hub's own certificate: made by the authority that every hub holds, and renewed at half its life.

use std::sync::Arc;
use std::time::Duration;

use fluvial_certs::{Authority, Bundle, Due, Identity, KeyPair, Reloadable, due};
use jiff::{SignedDuration, Timestamp};

use super::RunError;
use super::home::{Home, HubRecord};
use crate::clock::SharedClock;
use crate::enrol::issuer::server_names;

/// The longest sleep: a machine that was suspended finds out soon after.
const LOOK_EVERY: Duration = Duration::from_secs(300);
/// Pause after a renewal that failed, for example because the disk is full.
const RETRY: Duration = Duration::from_secs(60);

/// Makes a key and a certificate for the hub, and keeps both.
pub(crate) fn issue(
    home: &Home,
    authority: &Authority,
    record: &HubRecord,
    now: Timestamp,
    lifetime: Duration,
) -> Result<Bundle, RunError> {
    let key = KeyPair::generate().map_err(RunError::Key)?;
    let identity = Identity::Hub { id: record.node_id };
    let names = server_names(&record.advertise);
    let leaf = authority.issue_for_key(&key, &identity, &names, now, lifetime).map_err(RunError::Issue)?;
    // A crash between the two leaves a pair that does not fit, and the next start makes a new one.
    home.write_key(&key)?;
    home.write_certificate(&leaf.cert_pem)?;
    Bundle::new(&leaf.cert_pem, &key, &authority.cert_pem())
        .map_err(|error| RunError::Reply(format!("the own certificate: {error}")))
}

/// The kept certificate, or a new one if it is past half its life, lives longer than is wanted now, or cannot be used.
pub(super) fn usable_bundle(
    home: &Home,
    authority: &Authority,
    record: &HubRecord,
    now: Timestamp,
    lifetime: Duration,
) -> Result<Bundle, RunError> {
    let longest = SignedDuration::try_from(lifetime).unwrap_or(SignedDuration::MAX);
    let kept = home.leaf().ok().and_then(|(leaf, key)| Bundle::new(&leaf, &key, &authority.cert_pem()).ok());
    let fresh = kept.filter(|bundle| {
        bundle.verified(authority.trust_domain()).is_ok_and(|verified| {
            let ours = verified.identity == Identity::Hub { id: record.node_id };
            let brief = verified.not_after.duration_since(now) <= longest;
            ours && brief && due(verified.issued_at, verified.not_after, now, 0.5) != Due::Now
        })
    });
    fresh.map_or_else(|| issue(home, authority, record, now, lifetime), Ok)
}

/// Renews the certificate when it is due, for ever.
pub(super) async fn keep_fresh(
    home: Home,
    authority: Arc<Authority>,
    record: HubRecord,
    credentials: Arc<Reloadable>,
    clock: SharedClock,
    lifetime: Duration,
) {
    let mut jitter: f64 = rand::random();
    loop {
        let verified = credentials.current().bundle.verified(authority.trust_domain());
        let wait = match verified.map(|v| due(v.issued_at, v.not_after, clock.now(), jitter)) {
            Ok(Due::In(wait)) => wait.min(LOOK_EVERY),
            Ok(Due::Now) | Err(_) => Duration::ZERO,
        };
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
            continue;
        }
        let renewed = issue(&home, &authority, &record, clock.now(), lifetime)
            .and_then(|bundle| credentials.replace(bundle).map_err(RunError::Tls));
        match renewed {
            Ok(generation) => {
                tracing::info!(generation, "the hub's certificate was renewed");
                jitter = rand::random();
            }
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "the hub's certificate was not renewed");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}
