//! The two sides of a comparison, and how each is asked to write, read and watch the same small object.
//!
//! The object is a core Event with 100 bytes of message: a few hundred bytes of JSON. Fluvial gets it by `POST`, etcd as
//! the value of a key. Every write makes a new object, which each side acknowledges when a majority has it on disk.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut as _, Bytes, BytesMut};
use http::Method;
use prost::Message;
use rustls::ClientConfig;
use serde_json::{Value, json};

use fluvial_tests::connection::{Call, Connection, Protocol};

const JSON: &str = "application/json";
const GRPC: &str = "application/grpc";
/// Where the objects are, on our side.
const EVENTS: &str = "/api/v1/namespaces/default/events";
/// What their keys begin with, on etcd's.
const PREFIX: &str = "/registry/core/events/default/";

/// How a server is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Api {
    /// The Kubernetes-style REST API: JSON over HTTP/1.1.
    Fluvial,
    /// etcd's JSON gateway over HTTP/1.1: like ours.
    EtcdJson,
    /// etcd's own protocol: gRPC over HTTP/2.
    EtcdGrpc,
}

/// Three servers that run, and how to reach them.
#[derive(Debug, Clone)]
pub(crate) struct Side {
    pub(crate) api: Api,
    /// HOST:PORT of each, the leader's first: one client works with the leader, several are spread.
    pub(crate) addresses: Vec<String>,
    pub(crate) tls: Arc<ClientConfig>,
}

impl Side {
    /// A client's connection.
    pub(crate) async fn connect(&self, client: usize) -> Result<Connection> {
        let address = &self.addresses[client % self.addresses.len()];
        Connection::open(address, &self.tls, self.api.protocol()).await
    }
}

#[derive(Clone, PartialEq, Message)]
struct PutRequest {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

#[derive(Clone, PartialEq, Message)]
struct RangeRequest {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
}

/// The part of a range's answer that shows that the key was found.
#[derive(Clone, PartialEq, Message)]
struct RangeResponse {
    #[prost(int64, tag = "4")]
    count: i64,
}

/// Five bytes go before a message: not compressed, and its length.
fn grpc(path: &str, message: &impl Message) -> Call {
    let length = message.encoded_len();
    let mut body = BytesMut::with_capacity(5 + length);
    body.put_u8(0);
    body.put_u32(u32::try_from(length).expect("a small message"));
    message.encode(&mut body).expect("a BytesMut grows");
    Call { method: Method::POST, path: path.into(), content_type: GRPC, body: body.freeze() }
}

fn post(path: &str, body: &Value) -> Call {
    Call { method: Method::POST, path: path.into(), content_type: JSON, body: body.to_string().into() }
}

fn get(path: String) -> Call {
    Call { method: Method::GET, path, content_type: JSON, body: Bytes::new() }
}

fn key(name: &str) -> String {
    format!("{PREFIX}{name}")
}

fn object(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": { "name": name, "namespace": "default" },
        "involvedObject": {
            "apiVersion": "data.fluid.io/v1alpha1", "kind": "Dataset", "namespace": "default", "name": "imagenet",
        },
        "reason": "Measured",
        "message": "m".repeat(100),
        "type": "Normal",
        "count": 1,
        "source": { "component": "bench" },
    })
}

impl Api {
    fn protocol(self) -> Protocol {
        if self == Self::EtcdGrpc { Protocol::Http2 } else { Protocol::Http1 }
    }

    /// What the lines call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Fluvial => "fluvial",
            Self::EtcdJson => "etcd (JSON gateway)",
            Self::EtcdGrpc => "etcd (gRPC)",
        }
    }

    /// Makes the object of that name.
    pub(crate) fn write(self, name: &str) -> Call {
        let value = object(name);
        match self {
            Self::Fluvial => post(EVENTS, &value),
            Self::EtcdJson => {
                let pair = json!({ "key": STANDARD.encode(key(name)), "value": STANDARD.encode(value.to_string()) });
                post("/v3/kv/put", &pair)
            }
            Self::EtcdGrpc => {
                grpc("/etcdserverpb.KV/Put", &PutRequest { key: key(name).into(), value: value.to_string().into() })
            }
        }
    }

    /// Reads it, linearizably: the default of all three.
    pub(crate) fn read(self, name: &str) -> Call {
        match self {
            Self::Fluvial => get(format!("{EVENTS}/{name}")),
            Self::EtcdJson => post("/v3/kv/range", &json!({ "key": STANDARD.encode(key(name)) })),
            Self::EtcdGrpc => grpc("/etcdserverpb.KV/Range", &RangeRequest { key: key(name).into() }),
        }
    }

    /// Whether the answer to a read has the object.
    pub(crate) fn found(self, body: &Bytes) -> Result<()> {
        let found = match self {
            // Absent is 404, which is an error already.
            Self::Fluvial => !body.is_empty(),
            Self::EtcdJson => serde_json::from_slice::<Value>(body)?["count"] == "1",
            Self::EtcdGrpc => RangeResponse::decode(body.get(5..).unwrap_or_default())?.count == 1,
        };
        ensure!(found, "{} did not find what was written", self.name());
        Ok(())
    }

    /// Watches every object from now on; the connection's answer goes on with a JSON line for each.
    pub(crate) async fn watch(self, connection: &mut Connection) -> Result<Call> {
        if self == Self::Fluvial {
            let list: Value = serde_json::from_slice(&connection.succeed(get(format!("{EVENTS}?limit=1"))).await?)?;
            let version = list["metadata"]["resourceVersion"].as_str().context("a list without a resourceVersion")?;
            return Ok(get(format!("{EVENTS}?watch=true&resourceVersion={version}")));
        }
        let mut end = PREFIX.to_owned().into_bytes();
        // The first key after the prefix: `0` follows `/`.
        *end.last_mut().context("a prefix")? += 1;
        let range = json!({ "key": STANDARD.encode(PREFIX), "range_end": STANDARD.encode(end) });
        Ok(post("/v3/watch", &json!({ "create_request": range })))
    }

    /// The names of the objects that a line of a watch tells of.
    pub(crate) fn names(self, line: &[u8]) -> Result<Vec<String>> {
        let line: Value = serde_json::from_slice(line).context("a line of a watch")?;
        if self == Self::Fluvial {
            ensure!(line["type"] != "ERROR", "the watch ended: {line}");
            return Ok(line["object"]["metadata"]["name"].as_str().map(str::to_owned).into_iter().collect());
        }
        ensure!(line.get("error").is_none(), "the watch ended: {line}");
        let events = line["result"]["events"].as_array().map(Vec::as_slice).unwrap_or_default();
        let name = |event: &Value| {
            let key = STANDARD.decode(event["kv"]["key"].as_str().unwrap_or_default())?;
            Ok(String::from_utf8(key)?.trim_start_matches(PREFIX).to_owned())
        };
        events.iter().map(name).collect()
    }

    /// Whether the first line of a watch only says that it has begun.
    pub(crate) fn confirms_watch(self) -> bool {
        self != Self::Fluvial
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_name_the_object_of_a_watched_change() {
        let ours = br#"{"type":"ADDED","object":{"metadata":{"name":"w-1"}}}"#;
        assert_eq!(Api::Fluvial.names(ours).unwrap(), ["w-1"]);
        let key = STANDARD.encode(key("w-2"));
        let theirs = format!(r#"{{"result":{{"events":[{{"kv":{{"key":"{key}"}}}}]}}}}"#);
        assert_eq!(Api::EtcdJson.names(theirs.as_bytes()).unwrap(), ["w-2"]);
        assert_eq!(Api::EtcdJson.names(br#"{"result":{"created":true}}"#).unwrap(), Vec::<String>::new());
        assert!(Api::Fluvial.names(br#"{"type":"ERROR","object":{"code":410}}"#).is_err());
    }

    #[test]
    fn a_grpc_message_is_preceded_by_its_length() {
        let call = grpc("/x", &RangeRequest { key: Bytes::from_static(b"ab") });
        assert_eq!(&call.body[..], [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
    }

    #[test]
    fn both_sides_get_the_same_object() {
        let ours = Api::Fluvial.write("w-1").body;
        let theirs: Value = serde_json::from_slice(&Api::EtcdJson.write("w-1").body).unwrap();
        assert_eq!(STANDARD.decode(theirs["value"].as_str().unwrap()).unwrap(), ours);
        let native = Api::EtcdGrpc.write("w-1").body;
        assert_eq!(PutRequest::decode(&native[5..]).unwrap().value, ours);
    }
}
