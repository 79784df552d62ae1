//! Another hub joins: first contact by the token's pin, then a data directory like the others'.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use fluvial_certs::{Authority, Bundle, Identity, JoinToken, KeyPair, bundle, tls};
use fluvial_proto::v1;
use fluvial_proto::v1::join_service_client::JoinServiceClient;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use secrecy::{ExposeSecret as _, SecretString};
use tonic::transport::{Channel, Endpoint};
use zeroize::Zeroizing;

use super::RunError;
use super::home::{Home, HubRecord};
use super::setup::advertised;
use super::store::EtcdOptions;
use crate::peers::{dial, split_address};
use crate::vault::KEY_BYTES;

/// How long the hub may take to answer: an election and some.
const ANSWER: Duration = Duration::from_secs(30);

/// How another hub joins.
#[derive(Debug)]
pub struct JoinOptions {
    /// A hub of the fleet: `https://host:port`, or `host:port`.
    pub hub_url: String,
    /// A hub's join token.
    pub token: SecretString,
    pub data_dir: PathBuf,
    pub listen: SocketAddr,
    /// Where others reach it, `host:port`; the address that it listens on if not said.
    pub advertise: Option<String>,
    /// The fleet's etcd, if it has one.
    pub etcd: Option<EtcdOptions>,
}

/// Joins a fleet as another hub: writes a data directory that [`super::Hub::start`] runs. The leader takes the hub in
/// when it answers. Doing it again within ten minutes, after a lost reply, comes to the same.
///
/// # Errors
/// A token that is refused, a hub that is not the token's, a reply that does not fit, and what disk and network say.
pub async fn join(options: JoinOptions) -> Result<HubRecord, RunError> {
    let token: JoinToken = options.token.expose_secret().parse().map_err(RunError::Token)?;
    let advertise = advertised(options.advertise, options.listen)?;
    let hub = hub_address(&options.hub_url)?;
    let home = Home::new(&options.data_dir);
    home.prepare()?;
    // The key is kept before it is used: with it, and only with it, the token can be used again.
    let key = match home.key() {
        Ok(key) => key,
        Err(_) => {
            let key = KeyPair::generate().map_err(RunError::Key)?;
            home.write_key(&key)?;
            key
        }
    };
    let request = v1::JoinRequest {
        node: String::new(),
        token: token.text().expose_secret().to_owned(),
        csr: key.csr().map_err(RunError::Key)?,
        cluster: String::new(),
        hub_address: advertise.clone(),
    };
    let pinned = tls::pinned_client_config(token.pin(), &[tls::ALPN_H2]).map_err(RunError::Tls)?;
    let response = ask(hub, Arc::new(pinned), request).await?;
    let (mut record, authority, data_key) = checked(&token, &key, &response, options.listen, advertise)?;
    record.etcd = options.etcd;
    home.write_authority(&authority)?;
    home.write_data_key(&data_key)?;
    home.write_certificate(&response.certificate)?;
    home.write_record(&record)?;
    Ok(record)
}

fn hub_address(url: &str) -> Result<String, RunError> {
    let address = url.strip_prefix("https://").unwrap_or(url).trim_end_matches('/');
    if split_address(address).is_some() {
        Ok(address.to_owned())
    } else {
        Err(RunError::Address { address: url.to_owned() })
    }
}

async fn ask(
    address: String,
    config: Arc<ClientConfig>,
    request: v1::JoinRequest,
) -> Result<v1::JoinResponse, RunError> {
    // Made here so that an untrusted hub is an error that says so; the channel would hide it.
    dial(&address, config.clone()).await.map_err(RunError::Dial)?;
    let answer = tokio::time::timeout(ANSWER, async {
        let mut client = JoinServiceClient::new(channel(address, config)?);
        client.join(request).await.map_err(|status| RunError::Refused(Box::new(status)))
    });
    answer.await.map_err(|_| RunError::Timeout(ANSWER))?.map(tonic::Response::into_inner)
}

fn channel(address: String, config: Arc<ClientConfig>) -> Result<Channel, RunError> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|_| RunError::Address { address: address.clone() })?;
    Ok(endpoint.connect_with_connector_lazy(tower::service_fn(move |_| {
        let (address, config) = (address.clone(), config.clone());
        async move { dial(&address, config).await.map(TokioIo::new) }
    })))
}

/// What a reply gives, if it fits the token and the key.
fn checked(
    token: &JoinToken,
    key: &KeyPair,
    response: &v1::JoinResponse,
    listen: SocketAddr,
    advertise: String,
) -> Result<(HubRecord, Authority, Zeroizing<[u8; KEY_BYTES]>), RunError> {
    let wrong = |what: &str| RunError::Reply(what.to_owned());
    let grant = response.hub.as_ref().ok_or_else(|| wrong("it grants no hub"))?;
    let roots = bundle::parse_roots(&response.ca).map_err(|_| wrong("its authority cannot be read"))?;
    if token.pin().find_in(&roots).is_none() {
        return Err(wrong("its authority is not the one that the token pins"));
    }
    let authority = Authority::from_pem(&response.ca, &grant.ca_key.clone().into())
        .map_err(|_| wrong("its authority and key do not fit"))?;
    let own = Bundle::new(&response.certificate, key, &response.ca)
        .ok()
        .and_then(|bundle| bundle.verified(authority.trust_domain()).ok());
    if own.map(|verified| verified.identity) != Some(Identity::Hub { id: grant.node_id }) {
        return Err(wrong("its certificate is not for this hub"));
    }
    let data_key =
        <[u8; KEY_BYTES]>::try_from(&grant.data_key[..]).map_err(|_| wrong("its data key is too short or long"))?;
    let record = HubRecord {
        node_id: grant.node_id,
        cluster_id: grant.cluster_id.clone(),
        listen,
        advertise,
        first: false,
        etcd: None,
    };
    Ok((record, authority, Zeroizing::new(data_key)))
}
