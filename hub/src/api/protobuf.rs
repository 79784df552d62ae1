//! ① Kubernetes' protobuf bodies, for the kinds that `kubectl create` and `kubectl auth` send in no other form.
//!
//! Only the fields that a client gives are read; the numbers are those of Kubernetes' published `generated.proto`
//! files. Answers are JSON, which every client accepts.

mod rights;

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fluvial_model::access::RBAC_GROUP;
use fluvial_model::kinds::{ClusterRole, Namespace, Role, Secret};
use fluvial_model::resource::{KindInfo, Resource as _};
use prost::Message;
use serde_json::{Value, json};

/// What every such body begins with.
const MAGIC: &[u8] = b"k8s\0";

/// The media type.
pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";

#[derive(Message)]
struct Envelope {
    #[prost(message, optional, tag = "1")]
    type_meta: Option<TypeMeta>,
    #[prost(bytes = "vec", tag = "2")]
    raw: Vec<u8>,
}

#[derive(Message)]
struct TypeMeta {
    #[prost(string, tag = "1")]
    api_version: String,
    #[prost(string, tag = "2")]
    kind: String,
}

#[derive(Message)]
struct Meta {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    generate_name: String,
    #[prost(string, tag = "3")]
    namespace: String,
    #[prost(string, tag = "5")]
    uid: String,
    #[prost(string, tag = "6")]
    resource_version: String,
    #[prost(btree_map = "string, string", tag = "11")]
    labels: BTreeMap<String, String>,
    #[prost(btree_map = "string, string", tag = "12")]
    annotations: BTreeMap<String, String>,
    #[prost(string, repeated, tag = "14")]
    finalizers: Vec<String>,
}

/// A Secret, or the part of a Namespace that it begins like.
#[derive(Message)]
struct Body {
    #[prost(message, optional, tag = "1")]
    metadata: Option<Meta>,
}

#[derive(Message)]
struct SecretBody {
    #[prost(btree_map = "string, bytes", tag = "2")]
    data: BTreeMap<String, Vec<u8>>,
    #[prost(string, tag = "3")]
    secret_type: String,
    #[prost(btree_map = "string, string", tag = "4")]
    string_data: BTreeMap<String, String>,
    #[prost(bool, optional, tag = "5")]
    immutable: Option<bool>,
}

/// Whether a kind's objects are read in this form.
#[must_use]
pub fn is_read(info: &KindInfo) -> bool {
    let core = info.plural == Namespace::INFO.plural || info.plural == Secret::INFO.plural;
    info.group == RBAC_GROUP || (info.group.is_empty() && core)
}

/// The object in a body, as JSON; none if the bytes are not one. Says no more, because they may hold a secret.
#[must_use]
pub fn parse(info: &KindInfo, bytes: &[u8]) -> Option<Value> {
    let envelope = Envelope::decode(bytes.strip_prefix(MAGIC)?).ok()?;
    let type_meta = envelope.type_meta?;
    let meta = Body::decode(envelope.raw.as_slice()).ok()?.metadata.unwrap_or_default();
    let mut object = json!({
        "apiVersion": type_meta.api_version, "kind": type_meta.kind,
        "metadata": {
            "name": meta.name, "generateName": meta.generate_name, "namespace": meta.namespace, "uid": meta.uid,
            "resourceVersion": meta.resource_version, "labels": meta.labels, "annotations": meta.annotations,
            "finalizers": meta.finalizers,
        },
    });
    if info.plural == Secret::INFO.plural {
        let secret = SecretBody::decode(envelope.raw.as_slice()).ok()?;
        let data: BTreeMap<String, String> =
            secret.data.into_iter().map(|(key, value)| (key, STANDARD.encode(value))).collect();
        object["type"] = json!(secret.secret_type);
        object["data"] = json!(data);
        object["stringData"] = json!(secret.string_data);
        object["immutable"] = json!(secret.immutable);
    }
    if info.group == RBAC_GROUP {
        if info.plural == Role::INFO.plural || info.plural == ClusterRole::INFO.plural {
            object["rules"] = rights::rules(&envelope.raw)?;
        } else {
            (object["subjects"], object["roleRef"]) = rights::given(&envelope.raw)?;
        }
    }
    Some(object)
}

/// A review of a kind, as JSON; none if the bytes are not one.
#[must_use]
pub fn parse_review(kind: &str, bytes: &[u8]) -> Option<Value> {
    let envelope = Envelope::decode(bytes.strip_prefix(MAGIC)?).ok()?;
    Some(json!({ "metadata": {}, "spec": rights::review(kind, &envelope.raw)? }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrapped(kind: &str, raw: Vec<u8>) -> Vec<u8> {
        let type_meta = Some(TypeMeta { api_version: "v1".into(), kind: kind.into() });
        let mut bytes = MAGIC.to_vec();
        bytes.extend(Envelope { type_meta, raw }.encode_to_vec());
        bytes
    }

    #[test]
    fn a_secret_is_read() {
        let meta = Meta { name: "s".into(), ..Meta::default() };
        let mut raw = Body { metadata: Some(meta) }.encode_to_vec();
        let data = BTreeMap::from([("a".to_owned(), b"hunter2".to_vec())]);
        raw.extend(SecretBody { data, secret_type: "Opaque".into(), ..SecretBody::default() }.encode_to_vec());
        let secret = parse(&Secret::INFO, &wrapped("Secret", raw)).unwrap();
        assert_eq!((&secret["metadata"]["name"], &secret["kind"]), (&json!("s"), &json!("Secret")));
        assert_eq!((&secret["data"]["a"], &secret["type"]), (&json!("aHVudGVyMg=="), &json!("Opaque")));
    }

    #[test]
    fn other_bytes_are_not() {
        for bytes in [&b""[..], b"k8s\0", b"{}", b"k8s\0\xff\xff\xff", &wrapped("Secret", vec![0xff; 9])] {
            assert_eq!(parse(&Secret::INFO, bytes), None, "{bytes:?}");
        }
    }
}
