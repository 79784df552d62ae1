//! ② The audit trail's words between `fluvial-model` and `log.proto`. Neither way can fail.

use fluvial_model::audit::Entry;
use jiff::Timestamp;

use crate::v1;

impl From<Entry> for v1::AuditEntry {
    fn from(entry: Entry) -> Self {
        let Entry {
            time,
            user,
            groups,
            address,
            request,
            verb,
            api_group,
            resource,
            namespace,
            name,
            code,
            count,
            message,
        } = entry;
        // Until the year 2262.
        let time_ns = i64::try_from(time.as_nanosecond()).unwrap_or(i64::MAX);
        Self {
            time_ns,
            user,
            groups,
            address,
            request,
            verb,
            api_group,
            resource,
            namespace,
            name,
            code,
            count,
            message,
        }
    }
}

impl From<v1::AuditEntry> for Entry {
    fn from(entry: v1::AuditEntry) -> Self {
        let v1::AuditEntry {
            time_ns,
            user,
            groups,
            address,
            request,
            verb,
            api_group,
            resource,
            namespace,
            name,
            code,
            count,
            message,
        } = entry;
        // Any 64 bits of nanoseconds are within a timestamp's range.
        let time = Timestamp::from_nanosecond(i128::from(time_ns)).unwrap_or(Timestamp::UNIX_EPOCH);
        Self { time, user, groups, address, request, verb, api_group, resource, namespace, name, code, count, message }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_survives_the_wire() {
        let entry = Entry {
            time: Timestamp::from_nanosecond(1_800_000_000_000_000_001).unwrap(),
            user: "user/ann".into(),
            groups: vec!["a".into(), String::new()],
            address: "[::1]:5".into(),
            request: "r".into(),
            verb: "create".into(),
            api_group: "g".into(),
            resource: "datasets/status".into(),
            namespace: "n".into(),
            name: "d".into(),
            code: 201,
            count: 7,
            message: "m".into(),
        };
        assert_eq!(Entry::from(v1::AuditEntry::from(entry.clone())), entry);
    }
}
