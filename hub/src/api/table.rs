//! ① `Table` and `PartialObjectMetadata` answers, from the columns in the table of kinds.

use fluvial_model::resource::{KindInfo, PrinterColumn};
use jiff::Timestamp;
use serde_json::{Value, json};

/// The column that every table begins with.
const NAME: PrinterColumn = PrinterColumn { name: "Name", kind: "string", pointer: "/metadata/name", priority: 0 };

/// What a row carries beside its cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Include {
    Nothing,
    Metadata,
    Object,
}

impl Include {
    /// Reads `includeObject`; metadata unless told otherwise.
    #[must_use]
    pub fn parse(text: Option<&str>) -> Self {
        match text {
            Some("None") => Self::Nothing,
            Some("Object") => Self::Object,
            _ => Self::Metadata,
        }
    }
}

/// A `Table` of objects. `list_metadata` is the list's, or empty.
#[must_use]
pub fn table(info: &KindInfo, objects: &[Value], list_metadata: &Value, include: Include, now: Timestamp) -> Value {
    let columns = || std::iter::once(&NAME).chain(info.columns);
    let definitions: Vec<Value> = columns()
        .map(|column| {
            let format = if column.name == "Name" { "name" } else { "" };
            // Ages are shown as text, ready to read.
            let kind = if column.kind == "date" { "string" } else { column.kind };
            json!({ "name": column.name, "type": kind, "format": format, "priority": column.priority, "description": describe(column) })
        })
        .collect();
    let rows: Vec<Value> = objects
        .iter()
        .map(|object| {
            let cells: Vec<Value> = columns().map(|column| cell(column, object, now)).collect();
            match include {
                Include::Nothing => json!({ "cells": cells }),
                Include::Metadata => json!({ "cells": cells, "object": metadata(object) }),
                Include::Object => json!({ "cells": cells, "object": object }),
            }
        })
        .collect();
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": list_metadata,
        "columnDefinitions": definitions, "rows": rows,
    })
}

fn describe(column: &PrinterColumn) -> String {
    format!("The value at {}.", column.pointer.trim_start_matches('/').replace('/', "."))
}

fn cell(column: &PrinterColumn, object: &Value, now: Timestamp) -> Value {
    let value = object.pointer(column.pointer).unwrap_or(&Value::Null);
    match (column.kind, value) {
        ("date", Value::String(text)) => match text.parse::<Timestamp>() {
            Ok(time) => json!(age(time, now)),
            Err(_) => json!("<invalid>"),
        },
        ("date", _) => json!("<unknown>"),
        (_, Value::Null) => json!(""),
        ("string", Value::Array(items)) => {
            let texts: Vec<String> =
                items.iter().map(|item| item.as_str().map_or_else(|| item.to_string(), Into::into)).collect();
            json!(texts.join(","))
        }
        ("string", Value::Object(_)) => json!(value.to_string()),
        (_, value) => value.clone(),
    }
}

/// How long ago, in the few characters that `kubectl` uses: `45s`, `5m30s`, `3h`, `2d4h`, `400d`, `3y40d`.
#[must_use]
pub fn age(then: Timestamp, now: Timestamp) -> String {
    let seconds = now.as_second() - then.as_second();
    let two = |big: i64, big_unit: &str, small: i64, small_unit: &str| {
        if small == 0 { format!("{big}{big_unit}") } else { format!("{big}{big_unit}{small}{small_unit}") }
    };
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        i64::MIN..=-2 => "<invalid>".to_owned(),
        -1..=0 => "0s".to_owned(),
        _ if seconds < 120 => format!("{seconds}s"),
        _ if minutes < 10 => two(minutes, "m", seconds % 60, "s"),
        _ if minutes < 180 => format!("{minutes}m"),
        _ if hours < 8 => two(hours, "h", minutes % 60, "m"),
        _ if hours < 48 => format!("{hours}h"),
        _ if days < 8 => two(days, "d", hours % 24, "h"),
        _ if days < 730 => format!("{days}d"),
        _ if days < 365 * 8 => two(days / 365, "y", days % 365, "d"),
        _ => format!("{}y", days / 365),
    }
}

/// An object's metadata alone.
#[must_use]
pub fn metadata(object: &Value) -> Value {
    json!({ "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object.get("metadata") })
}

/// A list of metadata alone.
#[must_use]
pub fn metadata_list(objects: &[Value], list_metadata: &Value) -> Value {
    let items: Vec<Value> = objects.iter().map(metadata).collect();
    json!({ "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": list_metadata, "items": items })
}

#[cfg(test)]
mod tests {
    use fluvial_model::kinds::{Placement, Storage};
    use fluvial_model::resource::Resource as _;

    use super::*;

    #[test]
    fn ages_read_as_in_kubectl() {
        let now = Timestamp::from_second(1_000_000_000).unwrap();
        for (seconds, expected) in [
            (-5, "<invalid>"),
            (0, "0s"),
            (45, "45s"),
            (119, "119s"),
            (120, "2m"),
            (330, "5m30s"),
            (660, "11m"),
            (10_800, "3h"),
            (12_600, "3h30m"),
            (86_400, "24h"),
            (172_800, "2d"),
            (187_200, "2d4h"),
            (34_560_000, "400d"),
            (98_064_000, "3y40d"),
            (315_360_000, "10y"),
        ] {
            let then = Timestamp::from_second(1_000_000_000 - seconds).unwrap();
            assert_eq!(age(then, now), expected, "{seconds}");
        }
    }

    #[test]
    fn rows_follow_the_kinds_columns() {
        let now = Timestamp::from_second(1_000).unwrap();
        let object = json!({
            "metadata": { "name": "s", "creationTimestamp": "1970-01-01T00:16:00Z" },
            "spec": { "cluster": "a", "uri": "file:///x" }, "status": { "homes": 2, "usedBytes": 7 },
        });
        let table = table(&Storage::INFO, std::slice::from_ref(&object), &json!({}), Include::Nothing, now);
        let names: Vec<&str> =
            table["columnDefinitions"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["Name", "Cluster", "Uri", "Homes", "Used", "Age"]);
        assert_eq!(table["rows"], json!([{ "cells": ["s", "a", "file:///x", 2, 7, "40s"] }]));
    }

    #[test]
    fn missing_values_and_lists_are_shown_as_text() {
        let object = json!({ "metadata": { "name": "p" }, "status": { "clusters": ["a", "b"] } });
        let table = table(&Placement::INFO, &[object], &json!({}), Include::Metadata, Timestamp::UNIX_EPOCH);
        assert_eq!(table["rows"][0]["cells"], json!(["p", "", "a,b", "<unknown>"]));
        assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    }
}
