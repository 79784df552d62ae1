//! ② Between the model's words and etcd's: keys, values, transactions.
//!
//! | key in etcd | content |
//! |---|---|
//! | PREFIX`data`KEY | the value of KEY |
//! | PREFIX`audit/NUMBER` | what the audit trail says of one transaction, written by it; the order is that of revisions |
//! | PREFIX`meta/fleet` | whose prefix this is: the fleet's id |
//! | PREFIX`meta/compacted` | the revision before which hubs forget history |
//! | PREFIX`meta/hubs/ID` | a hub that is up, under its lease |
//! | PREFIX`meta/removed/ID` | a hub that was removed, and takes no place again |
//! | PREFIX`meta/leader` | the hub that leads, under its lease |
//!
//! Invariant: what a transaction compares and writes is what the model says, whatever etcd makes of a missing key.

use bytes::Bytes;
use fluvial_model::audit;
use fluvial_model::store::{Compare, KeyValue, Op, Revision, Txn, prefix_end};
use fluvial_raft::StoreError;
use prost::Message as _;

use crate::pb;
use crate::pb::compare::{CompareResult, CompareTarget, TargetUnion};
use crate::pb::request_op::Request as RequestOp;

/// The keys of one fleet.
#[derive(Debug, Clone)]
pub(crate) struct Keys {
    prefix: String,
    data: String,
}

/// A key below the prefix, by what it is for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Key<'a> {
    Data(&'a str),
    Audit,
    Fleet,
    Compacted,
    Hub(u64),
    Leader,
    /// Of a newer version.
    Other,
}

impl Keys {
    pub fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned(), data: format!("{prefix}data") }
    }

    pub fn data(&self, key: &str) -> Bytes {
        format!("{}{key}", self.data).into()
    }

    pub fn meta(&self, name: &str) -> Bytes {
        format!("{}meta/{name}", self.prefix).into()
    }

    pub fn hub(&self, id: u64) -> Bytes {
        self.meta(&format!("hubs/{id}"))
    }

    pub fn removed(&self, id: u64) -> Bytes {
        self.meta(&format!("removed/{id}"))
    }

    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The range of all keys of the fleet.
    pub fn all(&self) -> (Bytes, Bytes) {
        range(&self.prefix)
    }

    /// The range of what is not data.
    pub fn all_meta(&self) -> (Bytes, Bytes) {
        range(&format!("{}meta/", self.prefix))
    }

    /// The range of the data.
    pub fn all_data(&self) -> (Bytes, Bytes) {
        range(&self.data)
    }

    /// What a key of this fleet is for.
    pub fn read<'a>(&self, key: &'a [u8]) -> Result<Key<'a>, StoreError> {
        let damaged = || StoreError::Corrupt { what: format!("the key {:?} in etcd", String::from_utf8_lossy(key)) };
        let text = std::str::from_utf8(key).map_err(|_| damaged())?;
        if let Some(key) = text.strip_prefix(&self.data) {
            return Ok(Key::Data(key));
        }
        if text.strip_prefix(&self.prefix).is_some_and(|rest| rest.starts_with("audit/")) {
            return Ok(Key::Audit);
        }
        Ok(match text.strip_prefix(&self.prefix).and_then(|rest| rest.strip_prefix("meta/")) {
            Some("fleet") => Key::Fleet,
            Some("compacted") => Key::Compacted,
            Some("leader") => Key::Leader,
            Some(other) => match other.strip_prefix("hubs/").and_then(|id| id.parse().ok()) {
                Some(id) => Key::Hub(id),
                None => Key::Other,
            },
            None => Key::Other,
        })
    }

    /// The range of the audit trail.
    pub fn all_audit(&self) -> (Bytes, Bytes) {
        range(&format!("{}audit/", self.prefix))
    }

    /// `txn` as etcd makes it; what it says to the audit trail is kept under `number`, which was never used. If a compare fails, the answer says of each compared key when it was last written.
    pub fn txn(&self, txn: &Txn, number: u128) -> pb::TxnRequest {
        let mut compare = Vec::with_capacity(txn.compares.len());
        let mut failure = Vec::with_capacity(txn.compares.len());
        for condition in &txn.compares {
            let key = self.data(condition.key());
            match condition {
                Compare::Absent { .. } => compare.push(absent(key.clone())),
                Compare::UnchangedSince { revision, .. } => {
                    compare.push(unchanged(key.clone(), *revision));
                    if revision.0 == 0 {
                        // To etcd a missing key was last written at 0.
                        compare.push(present(key.clone()));
                    }
                }
            }
            failure.push(pb::RequestOp { request: Some(RequestOp::RequestRange(keys_only(key))) });
        }
        let mut success: Vec<_> = txn.ops.iter().map(|op| self.op(op)).collect();
        if !txn.audit.is_empty() {
            let key = format!("{}audit/{number:032x}", self.prefix);
            success.push(put(key.into(), encode_audit(txn.audit.clone()), 0));
        }
        if success.is_empty() {
            // Without a read in it etcd would answer from what this member has.
            success.push(pb::RequestOp { request: Some(RequestOp::RequestRange(keys_only(self.meta("fleet")))) });
        }
        pb::TxnRequest { compare, success, failure }
    }

    fn op(&self, op: &Op) -> pb::RequestOp {
        match op {
            Op::Put { key, value } => put(self.data(key), value.clone(), 0),
            Op::Delete { key } => delete(self.data(key)),
        }
    }
}

fn range(prefix: &str) -> (Bytes, Bytes) {
    // A prefix begins with '/', so that it has an end.
    (prefix.to_owned().into(), prefix_end(prefix).unwrap_or_default().into())
}

fn keys_only(key: Bytes) -> pb::RangeRequest {
    pb::RangeRequest { key, keys_only: true, ..pb::RangeRequest::default() }
}

fn compare(key: Bytes, result: CompareResult, target: CompareTarget, union: TargetUnion) -> pb::Compare {
    pb::Compare { result: result.into(), target: target.into(), key, target_union: Some(union) }
}

/// The key is not there.
pub(crate) fn absent(key: Bytes) -> pb::Compare {
    compare(key, CompareResult::Equal, CompareTarget::Create, TargetUnion::CreateRevision(0))
}

fn present(key: Bytes) -> pb::Compare {
    compare(key, CompareResult::Greater, CompareTarget::Create, TargetUnion::CreateRevision(0))
}

/// The key was last written at `revision`; at 0, it was never.
pub(crate) fn unchanged(key: Bytes, revision: Revision) -> pb::Compare {
    compare(key, CompareResult::Equal, CompareTarget::Mod, TargetUnion::ModRevision(signed(revision)))
}

pub(crate) fn put(key: Bytes, value: impl Into<Bytes>, lease: i64) -> pb::RequestOp {
    pb::RequestOp { request: Some(RequestOp::RequestPut(pb::PutRequest { key, value: value.into(), lease })) }
}

pub(crate) fn delete(key: Bytes) -> pb::RequestOp {
    pb::RequestOp { request: Some(RequestOp::RequestDeleteRange(pb::DeleteRangeRequest { key })) }
}

/// Which of `compares` failed first, by what etcd said of their keys when it refused the transaction.
pub(crate) fn first_failed<'a>(compares: &'a [Compare], responses: &[pb::ResponseOp]) -> Option<&'a Compare> {
    let written = |response: &pb::ResponseOp| match &response.response {
        Some(pb::response_op::Response::ResponseRange(range)) => range.kvs.first().map(|kv| revision(kv.mod_revision)),
        _ => None,
    };
    compares.iter().zip(responses).find(|(compare, response)| !compare.holds(written(response))).map(|(first, _)| first)
}

/// What a transaction says to the audit trail, in the log's own format.
fn encode_audit(audit: Vec<audit::Entry>) -> Vec<u8> {
    fluvial_proto::v1::Txn::from(Txn { audit, ..Txn::default() }).encode_to_vec()
}

/// The same, read back.
pub(crate) fn decode_audit(bytes: &[u8]) -> Result<Vec<audit::Entry>, StoreError> {
    let damaged = |_| StoreError::Corrupt { what: "a record of the audit trail in etcd".into() };
    fluvial_proto::v1::Txn::decode(bytes).map(|txn| Txn::from(txn).audit).map_err(damaged)
}

/// A value as the model knows it, under `key`.
pub(crate) fn key_value(key: &str, kv: &pb::KeyValue) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: kv.value.to_vec(),
        create_revision: revision(kv.create_revision),
        mod_revision: revision(kv.mod_revision),
    }
}

/// etcd's revisions are signed and never negative.
pub(crate) fn revision(number: i64) -> Revision {
    Revision(u64::try_from(number).unwrap_or(0))
}

pub(crate) fn signed(revision: Revision) -> i64 {
    i64::try_from(revision.0).unwrap_or(i64::MAX)
}

/// What is missing in an answer that has no header.
pub(crate) fn header(header: Option<pb::ResponseHeader>) -> Result<pb::ResponseHeader, StoreError> {
    header.ok_or_else(|| StoreError::unavailable("etcd's answer does not say at which revision it was made"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_again_and_those_of_others_are_not() {
        let keys = Keys::new("/fluvial/");
        assert_eq!(keys.read(&keys.data("/registry/a")).unwrap(), Key::Data("/registry/a"));
        assert_eq!(keys.read(&keys.data("ü")).unwrap(), Key::Data("ü"));
        assert_eq!(keys.read(&keys.hub(7)).unwrap(), Key::Hub(7));
        assert_eq!(keys.read(&keys.meta("leader")).unwrap(), Key::Leader);
        assert_eq!(keys.read(b"/fluvial/meta/hubs/x").unwrap(), Key::Other);
        assert!(keys.read(&[b"/fluvial/data".as_slice(), &[0xff]].concat()).is_err());
        let (from, to) = keys.all();
        assert!(from <= keys.data("") && keys.meta("x") < to && Bytes::from_static(b"/fluvial1") >= to);
        let (from, to) = keys.all_data();
        assert!(!(from..to).contains(&keys.meta("leader")));
    }

    #[test]
    fn a_compare_with_revision_0_holds_for_no_key() {
        let txn = Txn::replace("a", Revision(0), vec![]);
        assert_eq!(Keys::new("/f/").txn(&txn, 1).compare.len(), 2);
    }

    #[test]
    fn the_first_compare_that_fails_is_named() {
        let compares = [
            Compare::UnchangedSince { key: "a".into(), revision: Revision(5) },
            Compare::UnchangedSince { key: "b".into(), revision: Revision(5) },
            Compare::Absent { key: "c".into() },
        ];
        let found = |mod_revision: i64| {
            let kvs = vec![pb::KeyValue { mod_revision, ..pb::KeyValue::default() }];
            let range = pb::RangeResponse { kvs, ..pb::RangeResponse::default() };
            pb::ResponseOp { response: Some(pb::response_op::Response::ResponseRange(range)) }
        };
        let failed = first_failed(&compares, &[found(5), found(6), found(1)]);
        assert_eq!(failed.map(Compare::key), Some("b"));
        let failed = first_failed(&compares, &[found(5), found(5), found(1)]);
        assert_eq!(failed.map(Compare::key), Some("c"));
    }
}
