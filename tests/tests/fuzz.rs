//! Every parser of bytes from outside, with inputs that nobody meant: briefly here, and as long as is wanted by
//! `just fuzz TARGET SECONDS`. What is taken must also survive being used.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::str::from_utf8;
use std::sync::Arc;

use fluvial_certs::{Csr, Identity, JoinToken, KeyPair, SpkiPin, TrustDomain};
use fluvial_hub::api::body::{self, Notation};
use fluvial_hub::api::continuation::Continuation;
use fluvial_hub::api::options::{FieldValidation, Options};
use fluvial_hub::api::patch::{self, PatchKind};
use fluvial_hub::api::selection::Selection;
use fluvial_hub::api::{path, protobuf};
use fluvial_hub::catalog::{CatalogSource, Format, Limits, QueryEngine, Sight};
use fluvial_hub::vault::Vault;
use fluvial_model::audit::{Entry, Head};
use fluvial_model::desired::Work;
use fluvial_model::kinds::{Dataset, KINDS};
use fluvial_model::manifest::{self, RelativePath};
use fluvial_model::notification::{changed_objects, concerns};
use fluvial_model::report::{AgentReport, Report};
use fluvial_model::resource::Resource as _;
use fluvial_model::selector::LabelSelector;
use fluvial_model::store::{Revision, Txn, TxnOutcome};
use fluvial_model::uri::Uri;
use fluvial_proto::v1;
use fluvial_tests::fuzz::run;
use prost::Message as _;
use serde_json::{Value, json};

/// Parsers of text are given what is text.
fn text(parse: impl Fn(&str)) -> impl Fn(&[u8]) {
    move |bytes| {
        if let Ok(text) = from_utf8(bytes) {
            parse(text);
        }
    }
}

const MANIFEST: &[u8] = br#"{"apiVersion":"data.fluid.io/v1alpha1","kind":"Dataset","metadata":{"name":"d","namespace":"default",
    "labels":{"a":"b"},"finalizers":["x"]},"spec":{"mounts":[{"mountPoint":"s3://b/p","name":"m","path":"/a",
    "options":{"endpoint":"http://x"},"encryptOptions":[{"name":"k","valueFrom":{"secretKeyRef":{"name":"s","key":"k"}}}]}]}}"#;

#[test]
fn join_tokens() {
    let pin = SpkiPin::from_hex(&"ab".repeat(32)).unwrap();
    let token =
        secrecy::ExposeSecret::expose_secret(&JoinToken::mint(&[7; fluvial_certs::token::MINT_BYTES], pin).text())
            .to_owned();
    run(
        "join_tokens",
        &[token.as_bytes(), b"fluvial.t00.x.y"],
        text(|text| {
            if let Ok(token) = text.parse::<JoinToken>() {
                // Whoever copies it may copy the end of its line, too.
                assert_eq!(secrecy::ExposeSecret::expose_secret(&token.text()), text.trim());
            }
        }),
    );
}

#[test]
fn signing_requests() {
    let pem = KeyPair::generate().unwrap().csr().unwrap();
    let der = rustls_pki_types::CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec();
    use rustls_pki_types::pem::PemObject as _;
    run("signing_requests", &[pem.as_bytes(), &der], |bytes| {
        let _ = Csr::from_der(bytes).map(|csr| csr.key_hash());
        text(|text| drop(Csr::from_pem(text)))(bytes);
    });
}

#[test]
fn certificates_and_identities() {
    let domain = TrustDomain::new("fluvial.test").unwrap();
    let authority = fluvial_certs::Authority::generate(domain.clone(), jiff::Timestamp::now()).unwrap();
    let identity = Identity::User { name: "ann".into(), groups: vec!["team".into()] };
    let day = std::time::Duration::from_secs(86_400);
    let leaf =
        authority.issue_for_key(&KeyPair::generate().unwrap(), &identity, &[], jiff::Timestamp::now(), day).unwrap();
    use rustls_pki_types::pem::PemObject as _;
    let der = rustls_pki_types::CertificateDer::from_pem_slice(leaf.cert_pem.as_bytes()).unwrap().to_vec();
    let uri = b"spiffe://fluvial.test/cluster/a/node/n".as_slice();
    run("certificates_and_identities", &[&der, uri, b"spiffe://fluvial.test/hub/7"], |bytes| {
        let _ = Identity::from_leaf(bytes, &domain);
        text(|text| {
            if let Ok(identity) = Identity::parse(text, &domain) {
                assert_eq!(identity.uri(&domain), text);
            }
        })(bytes);
    });
}

#[test]
fn manifest_blocks() {
    let mut blocks: Vec<Vec<u8>> = Vec::new();
    let mut builder = manifest::TreeBuilder::new(|_, data: Vec<u8>| {
        blocks.push(data);
        Ok::<_, std::convert::Infallible>(())
    });
    for name in ["a/b", "a/c", "d"] {
        let file = manifest::File { size: 5, mtime_ns: 7, mode: 0o644, digest: Some(manifest::Digest::of(b"x")) };
        builder.push(&RelativePath::parse(name).unwrap(), manifest::Entry::File(file)).unwrap();
    }
    builder.finish().unwrap();
    let corpus: Vec<&[u8]> = blocks.iter().map(Vec::as_slice).collect();
    run("manifest_blocks", &corpus, |bytes| {
        if let Ok(node) = manifest::decode(bytes) {
            let again = node.encode();
            assert_eq!(manifest::decode(&again).unwrap(), node);
            let _ = node.totals();
        }
    });
}

#[test]
fn uris_and_paths() {
    let corpus: &[&[u8]] =
        &[b"s3://bucket/a%20b/c", b"file:///srv/data", b"hdfs://[::1]:8020/x", b"https://u@h:1/p?q#f", b"a/b/../c"];
    run(
        "uris_and_paths",
        corpus,
        text(|text| {
            if let Ok(uri) = Uri::parse(text) {
                assert_eq!(Uri::parse(&uri.to_string()).unwrap(), uri, "{text:?}");
                let _ = (uri.join(text), uri.is_local(), uri.contains(&uri));
            }
            let _ = RelativePath::parse(text);
            let _ = text.parse::<Head>();
            let segments = path::segments(text).unwrap_or_default();
            for kind in KINDS {
                let _ = path::target(kind.info.group, kind.info.version, &segments, text).map(|target| target.prefix());
            }
        }),
    );
}

#[test]
fn selectors_and_options() {
    let corpus: &[&[u8]] = &[
        b"a=b,c!=d,e in (f,g),!h,i notin (j)",
        b"watch=true&limit=5&labelSelector=a%3Db&resourceVersion=7&timeoutSeconds=3",
        b"fieldSelector=metadata.name%3Dx&continue=abc&dryRun=All&fieldValidation=Strict",
    ];
    run(
        "selectors_and_options",
        corpus,
        text(|text| {
            if let Ok(selector) = LabelSelector::parse(text) {
                let _ = selector.matches(&[("a".to_owned(), "b".to_owned())].into());
            }
            let Ok(options) = Options::parse(Some(text)) else { return };
            let _ = (options.limit(), options.flag("watch"), options.resource_version(), options.version_match());
            let _ = (options.timeout(), options.dry_run(), options.field_validation());
            for kind in KINDS {
                if let Ok(selection) = Selection::read(&options, &kind.info) {
                    let _ = selection.matches(&json!({ "metadata": { "name": "x", "labels": { "a": "b" } } }));
                }
            }
        }),
    );
}

#[test]
fn bodies() {
    let yaml: &[u8] = b"apiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData: {a: b}\ndata:\n  c: aGk=\n";
    let storage: &[u8] = br#"{"spec":{"cluster":"a","uri":"s3://b","capacity":"5Gi","schedule":"1h"},"status":{}}"#;
    run("bodies", &[MANIFEST, yaml, storage], |bytes| {
        for notation in [Notation::Json, Notation::Yaml] {
            let Ok(value) = body::parse(bytes, notation, false) else { continue };
            for kind in KINDS {
                if let Ok(incoming) = body::decode(kind, "d", value.clone(), FieldValidation::Warn) {
                    let _ = (kind.validate)(&incoming.object, None);
                    let _ = (kind.project)(incoming.object.to_string().as_bytes());
                }
            }
        }
        for kind in KINDS {
            let _ = (kind.project)(bytes);
            if protobuf::is_read(&kind.info) {
                let _ = protobuf::parse(&kind.info, bytes);
            }
        }
    });
}

#[test]
fn patches() {
    let object: Value = serde_json::from_slice(MANIFEST).unwrap();
    let corpus: &[&[u8]] = &[
        br#"[{"op":"replace","path":"/spec/mounts/0/name","value":1},{"op":"move","from":"/metadata","path":"/a~1b"}]"#,
        br#"[{"op":"test","path":"/kind","value":"Dataset"},{"op":"add","path":"/spec/mounts/-","value":{}}]"#,
        br#"{"metadata":{"labels":{"a":null,"$patch":"delete"}},"spec":{"mounts":[]}}"#,
    ];
    run("patches", corpus, |bytes| {
        let Ok(patch) = serde_json::from_slice(bytes) else { return };
        for kind in [PatchKind::Merge, PatchKind::Json, PatchKind::Strategic] {
            let _ = patch::apply(kind, &object, &patch);
        }
    });
}

#[test]
fn continue_tokens() {
    let vault = Vault::new(&zeroize::Zeroizing::new([7; 32]));
    let token = Continuation { revision: Revision(7), after: "/registry/x".into() }.seal(&vault, "/registry/").unwrap();
    run(
        "continue_tokens",
        &[token.as_bytes(), b"AAAA"],
        text(|text| {
            // Only the very token is taken.
            assert!(Continuation::open(text, &vault, "/registry/").is_err() || text == token);
            assert!(Continuation::open(text, &vault, "/other/").is_err());
        }),
    );
}

#[test]
fn messages() {
    let txn = Txn::replace("/registry/k", Revision(3), b"value".to_vec());
    let audited = Txn { audit: vec![Entry { user: "user/ann".into(), ..Entry::default() }], ..txn };
    let txn = v1::Txn::from(audited).encode_to_vec();
    let hello = v1::AgentMessage {
        message: Some(v1::agent_message::Message::Hello(v1::Hello {
            epoch: 1,
            cursor: 2,
            newest_epoch: 1,
            agent_report: serde_json::to_vec(&AgentReport::default()).unwrap().into(),
        })),
    }
    .encode_to_vec();
    let entry = v1::RaftEntry {
        log_id: Some(v1::RaftLogId { term: 1, node: 2, index: 3 }),
        payload: Some(v1::raft_entry::Payload::Command(txn.clone().into())),
    }
    .encode_to_vec();
    run("messages", &[&txn, &hello, &entry], |bytes| {
        if let Ok(txn) = v1::Txn::decode(bytes) {
            let txn = Txn::from(txn);
            let _ = txn.written_twice();
            assert_eq!(Txn::from(v1::Txn::from(txn.clone())), txn);
        }
        let _ = v1::TxnOutcome::decode(bytes).map(TxnOutcome::try_from);
        let _ = (v1::RaftEntry::decode(bytes), v1::Command::decode(bytes), v1::PeerAppendRequest::decode(bytes));
        let _ = (v1::AgentMessage::decode(bytes), v1::HubMessage::decode(bytes), v1::JoinRequest::decode(bytes));
        let _ = (v1::RelayEntries::decode(bytes), v1::PeerSnapshotPart::decode(bytes));
    });
}

#[test]
fn reports_and_work() {
    let corpus: &[&[u8]] = &[
        br#"{"platform":"host","version":"1","instance":"i","engines":["nodecache"],"nodes":[{"node":"n","media":[]}]}"#,
        br#"{"cache":{"phase":"Filling","cachedBytes":1,"totalBytes":2}}"#,
        br#"{"kind":"Cache","phase":"Ready"}"#,
    ];
    run("reports_and_work", corpus, |bytes| {
        let _ = serde_json::from_slice::<AgentReport>(bytes);
        let _ = serde_json::from_slice::<Report>(bytes);
        let _ = serde_json::from_slice::<Work>(bytes).map(|work| work.id());
    });
}

#[test]
fn notifications() {
    let dataset = Dataset::from_bytes(MANIFEST).unwrap();
    let corpus: &[&[u8]] = &[
        br#"{"Records":[{"eventName":"s3:ObjectCreated:Put","s3":{"bucket":{"name":"b"},"object":{"key":"p%2Fa+b"}}}]}"#,
        br#"{"Type":"Notification","Message":"{\"Records\":[]}"}"#,
        br#"[{"eventType":"Microsoft.Storage.BlobCreated","data":{"url":"https://a.blob.core.windows.net/c/p"}}]"#,
        br#"{"bucket":"b","name":"p/x","kind":"storage#object"}"#,
    ];
    run("notifications", corpus, |bytes| {
        let Ok(message) = serde_json::from_slice::<Value>(bytes) else { return };
        if let Ok(changed) = changed_objects(&message) {
            let _ = concerns(&dataset, &changed);
        }
    });
}

/// A catalog without rows.
struct Empty(tempfile::TempDir);

impl CatalogSource for Empty {
    fn path(&self) -> std::path::PathBuf {
        self.0.path().join("catalog.db")
    }

    fn generation(&self) -> u64 {
        1
    }
}

#[test]
fn statements() {
    let empty = Empty(tempfile::tempdir().unwrap());
    let db = rusqlite::Connection::open(empty.path()).unwrap();
    db.execute_batch(
        "CREATE TABLE fv_objects (key BLOB, value BLOB); INSERT INTO fv_objects VALUES ('k', 'hidden');
         CREATE TABLE fv_row_datasets (fv_key BLOB, namespace TEXT, name TEXT, phase TEXT);
         INSERT INTO fv_row_datasets VALUES ('hidden', 'n', 'd', 'p');
         CREATE VIEW datasets AS SELECT namespace, name, phase FROM fv_row_datasets;",
    )
    .unwrap();
    drop(db);
    let limits = Limits { time: std::time::Duration::from_millis(200), ..Limits::default() };
    let engine = QueryEngine::open(Arc::new(empty), limits);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let corpus: &[&[u8]] = &[
        b"SELECT name, count(*) FROM datasets WHERE namespace = 'n' GROUP BY name ORDER BY 1 LIMIT 5",
        b"WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT 9) SELECT * FROM n, datasets",
        b"SELECT json_extract('{\"a\":1}', '$.a'), hex(randomblob(4)), printf('%5d', 7) FROM datasets a JOIN datasets b",
        b"SELECT * FROM fv_objects; ATTACH 'x' AS y; PRAGMA table_list; INSERT INTO fv_objects VALUES (1, 2)",
        b"SELECT value, fv_key FROM fv_objects, fv_row_datasets, sqlite_schema",
    ];
    run(
        "statements",
        corpus,
        text(|sql| {
            if let Ok(answer) = runtime.block_on(engine.query(sql, Format::Json, &Sight::All)) {
                // Whatever is asked: what is behind the tables stays there, unless the question itself says the word.
                let answer = String::from_utf8_lossy(&answer.bytes).into_owned();
                assert!(!answer.contains("hidden"), "{sql}: {answer}");
            }
        }),
    );
}
