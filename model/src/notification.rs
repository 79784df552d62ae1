//! ① What stores say when something in them changed, and which datasets that is about.
//!
//! Two forms of one message are read: the `Records` that S3 and everything like it sends (Amazon S3, MinIO, Ceph), and
//! the event that Amazon EventBridge makes of it. Sources: "Event message structure" in the Amazon S3 user guide, "S3
//! event message structure" of EventBridge, and MinIO's "bucket notifications".
//!
//! Invariant: a message that cannot be read is an error, never "nothing changed".
//! Deliberately absent: what exactly changed. A notice has the sources listed, and the listing says.

use serde_json::Value;
use thiserror::Error;

use crate::kinds::Dataset;
use crate::names::printable;
use crate::uri::Uri;

/// An object that was made, changed or removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangedObject {
    pub bucket: String,
    pub key: String,
}

/// Why a message is no notification.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NotificationError {
    #[error("expected a notification of S3: an object with \"Records\", or with \"detail\" as EventBridge sends it")]
    Form,
    #[error("{at} must be a text")]
    Missing { at: String },
    #[error("{at} is not percent-encoded UTF-8: \"{text}\"")]
    Encoding { at: String, text: String },
}

/// Reads a notification. A store that only tries the address names no object.
///
/// # Errors
/// When it is none.
pub fn changed_objects(message: &Value) -> Result<Vec<ChangedObject>, NotificationError> {
    if let Some(records) = message.get("Records").and_then(Value::as_array) {
        let read = |(index, record): (usize, &Value)| {
            let at = |field: &str| format!("Records[{index}].s3.{field}");
            let bucket = text(record, "/s3/bucket/name", || at("bucket.name"))?;
            let key = decoded(text(record, "/s3/object/key", || at("object.key"))?, || at("object.key"))?;
            Ok(ChangedObject { bucket: bucket.to_owned(), key })
        };
        return records.iter().enumerate().map(read).collect();
    }
    if message.get("detail").is_some() {
        let bucket = text(message, "/detail/bucket/name", || "detail.bucket.name".to_owned())?;
        let key = text(message, "/detail/object/key", || "detail.object.key".to_owned())?;
        return Ok(vec![ChangedObject { bucket: bucket.to_owned(), key: key.to_owned() }]);
    }
    if message.get("Event").and_then(Value::as_str) == Some("s3:TestEvent") {
        return Ok(Vec::new());
    }
    Err(NotificationError::Form)
}

fn text<'a>(value: &'a Value, pointer: &str, at: impl Fn() -> String) -> Result<&'a str, NotificationError> {
    value.pointer(pointer).and_then(Value::as_str).ok_or_else(|| NotificationError::Missing { at: at() })
}

/// Keys in `Records` are encoded as in a form: `%41` for a byte, `+` for a space.
fn decoded(key: &str, at: impl Fn() -> String) -> Result<String, NotificationError> {
    let bad = || NotificationError::Encoding { at: at(), text: printable(key) };
    let mut bytes = Vec::with_capacity(key.len());
    let mut rest = key.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || rest.next().and_then(|digit| char::from(digit).to_digit(16));
                let (high, low) = digit().zip(digit()).ok_or_else(bad)?;
                u8::try_from(high * 16 + low).map_err(|_| bad())?
            }
            other => other,
        });
    }
    String::from_utf8(bytes).map_err(|_| bad())
}

/// Whether one of the objects lies where a mount of the dataset is. The endpoint is not compared, for a notification does
/// not say it: two stores with buckets of one name cost a listing too many.
#[must_use]
pub fn concerns(dataset: &Dataset, changed: &[ChangedObject]) -> bool {
    let mounts = dataset.spec.mounts.iter().filter_map(|mount| Uri::parse(&mount.mount_point).ok());
    let mut places = mounts.filter(|uri| uri.scheme() == "s3");
    places.any(|uri| {
        let prefix = uri.path().trim_start_matches('/');
        let below = |key: &str| {
            prefix.is_empty() || key.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        changed.iter().any(|object| object.bucket == uri.authority() && below(&object.key))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds::{DatasetSpec, Mount};

    fn record(bucket: &str, key: &str) -> Value {
        json!({ "eventName": "ObjectCreated:Put", "s3": { "bucket": { "name": bucket }, "object": { "key": key } } })
    }

    fn object(bucket: &str, key: &str) -> ChangedObject {
        ChangedObject { bucket: bucket.into(), key: key.into() }
    }

    #[test]
    fn records_of_s3_are_read_and_their_keys_decoded() {
        let message = json!({ "EventName": "s3:ObjectCreated:Put", "Key": "b/x", "Records": [
            record("b", "a+b%2Fc/%C3%BC%25%2b"), record("c", "plain")
        ] });
        assert_eq!(changed_objects(&message), Ok(vec![object("b", "a b/c/ü%+"), object("c", "plain")]));
    }

    #[test]
    fn an_event_of_eventbridge_is_read_as_it_stands() {
        let detail = json!({ "bucket": { "name": "b" }, "object": { "key": "a+b%20", "size": 1 } });
        let message = json!({ "source": "aws.s3", "detail-type": "Object Created", "detail": detail });
        assert_eq!(changed_objects(&message), Ok(vec![object("b", "a+b%20")]));
    }

    #[test]
    fn a_try_of_the_address_names_no_object() {
        assert_eq!(changed_objects(&json!({ "Event": "s3:TestEvent", "Bucket": "b" })), Ok(Vec::new()));
        assert_eq!(changed_objects(&json!({ "Records": [] })), Ok(Vec::new()));
    }

    #[test]
    fn whatever_is_no_notification_is_an_error_that_names_the_place() {
        for message in [json!({}), json!([]), json!("Records"), json!({ "Records": 1 }), json!({ "Event": "other" })] {
            assert_eq!(changed_objects(&message), Err(NotificationError::Form), "{message}");
        }
        let missing = changed_objects(&json!({ "Records": [record("b", "x"), { "s3": {} }] })).unwrap_err();
        assert_eq!(missing.to_string(), "Records[1].s3.bucket.name must be a text");
        for key in ["%", "%4", "%zz", "%ff", "%+1"] {
            let error = changed_objects(&json!({ "Records": [record("b", key)] })).unwrap_err();
            assert!(error.to_string().starts_with("Records[0].s3.object.key is not percent-encoded"), "{key}: {error}");
        }
    }

    #[test]
    fn a_dataset_is_concerned_by_what_lies_where_it_is_mounted() {
        let mount = |uri: &str| Mount { mount_point: uri.into(), ..Mount::default() };
        let mounts = vec![mount("file:///data"), mount("oss://odd/uri"), mount("s3://bucket/a/b"), mount("s3://whole")];
        let dataset = Dataset::new("default", "d", DatasetSpec { mounts, ..DatasetSpec::default() });
        for (bucket, key, expected) in [
            ("bucket", "a/b/c", true),
            ("bucket", "a/b", true),
            ("bucket", "a/bc", false),
            ("bucket", "a", false),
            ("bucket", "", false),
            ("whole", "anything", true),
            ("other", "a/b/c", false),
        ] {
            assert_eq!(concerns(&dataset, &[object("x", "y"), object(bucket, key)]), expected, "{bucket}/{key}");
        }
    }
}
