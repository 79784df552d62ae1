//! What the log keeps, and what it refuses.

use openraft::testing::common::{blank_ent, log_id};

use super::*;

fn command(index: u64, value: &'static str) -> Entry {
    let mut entry: Entry = blank_ent::<TypeConfig>(1, 1, index);
    entry.payload = openraft::EntryPayload::Normal(crate::types::Command(Bytes::from_static(value.as_bytes())));
    entry
}

fn open(path: &Path) -> Result<LogStore, LogError> {
    LogStore::open(path, Arc::new(Health::default()))
}

async fn append(log: &mut LogStore, entries: Vec<Entry>) -> io::Result<()> {
    let (tx, rx) = <TypeConfig as openraft::type_config::TypeConfigExt>::oneshot();
    log.append(entries, IOFlushed::signal(tx)).await?;
    rx.await.unwrap()
}

#[tokio::test]
async fn what_was_flushed_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log.db");
    let entries: Vec<Entry> = (1..=9).map(|index| command(index, "value")).collect();
    let vote = Vote::new(7, 3);
    {
        let mut log = open(&path).unwrap();
        log.save_vote(&vote).await.unwrap();
        append(&mut log, entries.clone()).await.unwrap();
        log.purge(log_id::<TypeConfig>(1, 1, 2)).await.unwrap();
        log.truncate_after(Some(log_id::<TypeConfig>(1, 1, 7))).await.unwrap();
    }
    let mut log = open(&path).unwrap();
    assert_eq!(log.read_vote().await.unwrap(), Some(vote));
    assert_eq!(log.try_get_log_entries(..).await.unwrap(), entries[2..7]);
    let state = log.get_log_state().await.unwrap();
    assert_eq!(
        (state.last_purged_log_id, state.last_log_id),
        (Some(log_id::<TypeConfig>(1, 1, 2)), Some(log_id::<TypeConfig>(1, 1, 7)))
    );
}

#[tokio::test]
async fn what_is_committed_is_never_told_beyond_what_is_on_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log.db");
    let stored = |path: &Path| {
        let db = Connection::open(path).unwrap();
        read_meta::<v1::RaftLogId>(&db, COMMITTED).unwrap().map(|id| id.index)
    };
    for (committed, expected) in [(4, Some(4)), (9, Some(4))] {
        {
            let mut log = open(&path).unwrap();
            // A leader may say so of entries that are still on their way to the disk.
            log.save_committed(Some(log_id::<TypeConfig>(1, 1, committed))).await.unwrap();
            let next = log.get_log_state().await.unwrap().last_log_id.map_or(1, |last| last.index + 1);
            append(&mut log, (next..next + 4).map(|index| command(index, "value")).collect()).await.unwrap();
        }
        assert_eq!(stored(&path), expected, "{committed}");
    }
    // What an earlier version left behind is not believed.
    Connection::open(&path)
        .and_then(|db| write_meta(&db, COMMITTED, &log_id_out(&log_id::<TypeConfig>(1, 1, 12))))
        .unwrap();
    assert_eq!(open(&path).unwrap().read_committed().await.unwrap(), None);
}

#[tokio::test]
async fn entries_that_left_the_memory_are_read_from_disk() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(&dir.path().join("log.db")).unwrap();
    let large = Bytes::from(vec![7; 1 << 20]);
    let entries: Vec<Entry> = (1..=20)
        .map(|index| {
            let mut entry = command(index, "");
            entry.payload = openraft::EntryPayload::Normal(crate::types::Command(large.clone()));
            entry
        })
        .collect();
    append(&mut log, entries.clone()).await.unwrap();
    assert!(lock(&log.inner.state).cache_first > 1, "the memory is bounded");
    assert_eq!(log.try_get_log_entries(1..=20).await.unwrap(), entries);
    assert_eq!(log.limited_get_log_entries(3, 20).await.unwrap(), entries[2..3]);
}

#[tokio::test]
async fn a_flipped_byte_in_a_record_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log.db");
    {
        let mut log = open(&path).unwrap();
        append(&mut log, (1..=5).map(|index| command(index, "a value to be found in the file")).collect())
            .await
            .unwrap();
    }
    let mut file = std::fs::read(&path).unwrap();
    let needle = b"a value to be found";
    let at = file.windows(needle.len()).position(|window| window == needle).unwrap();
    file[at] ^= 1;
    std::fs::write(&path, file).unwrap();
    assert!(matches!(open(&path), Err(LogError::Damaged { .. })));
}

#[tokio::test]
async fn a_flipped_byte_in_the_vote_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log.db");
    open(&path).unwrap().save_vote(&Vote::new(7, 3)).await.unwrap();
    Connection::open(&path).unwrap().execute("UPDATE meta SET value = x'0808'", []).unwrap();
    assert!(matches!(open(&path), Err(LogError::DamagedMeta { name: "vote" })));
}

/// The log's files as a process that is killed now leaves them.
fn image(path: &Path) -> Vec<(&'static str, Vec<u8>)> {
    ["db", "db-wal", "mark"].map(|end| (end, std::fs::read(path.with_extension(end)).unwrap())).into()
}

/// Opens a log of these files.
fn opened(files: &[(&str, Vec<u8>)]) -> Result<Vec<Entry>, LogError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log.db");
    files.iter().for_each(|(end, bytes)| std::fs::write(path.with_extension(end), bytes).unwrap());
    let log = open(&path)?;
    log.read(0, u64::MAX, usize::MAX)
}

#[tokio::test]
async fn a_torn_write_is_dropped_if_it_was_never_acknowledged_and_missed_if_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log.db");
    let mut log = open(&path).unwrap();
    let entries: Vec<Entry> = (1..=4).map(|index| command(index, "value")).collect();
    append(&mut log, entries[..3].to_vec()).await.unwrap();
    let before = image(&path);
    append(&mut log, entries[3..].to_vec()).await.unwrap();
    let after = image(&path);
    let (start, end) = (before[1].1.len(), after[1].1.len());
    assert!(end > start, "the write-ahead log has grown");
    let torn = |length: usize, mark: &(&'static str, Vec<u8>)| {
        let log = ("db-wal", after[1].1[..length].to_vec());
        opened(&[after[0].clone(), log, mark.clone()])
    };
    for length in (start..end).step_by(61).chain([end - 1]) {
        // The mark follows the sync: the power went before, or the process was killed.
        assert_eq!(torn(length, &before[2]).unwrap(), entries[..3], "cut at {length}");
        assert!(matches!(torn(length, &after[2]), Err(LogError::Lost { .. })), "cut at {length}");
    }
    assert_eq!(torn(end, &after[2]).unwrap(), entries);
    assert_eq!(torn(end, &before[2]).unwrap(), entries);
}

#[tokio::test]
async fn a_log_that_is_empty_or_gone_is_no_new_log() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log.db");
    let mut log = open(&path).unwrap();
    append(&mut log, vec![command(1, "value")]).await.unwrap();
    log.close();
    drop(log);
    std::fs::write(&path, b"").unwrap();
    assert!(matches!(open(&path), Err(LogError::Lost { found: 0, .. })));
}
