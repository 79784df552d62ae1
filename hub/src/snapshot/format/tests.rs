//! What a snapshot file says of itself, and how it is told from one that is damaged, newer, or another's.

use super::*;
use proptest::prelude::*;
use secrecy::SecretString;

fn key(password: &str) -> (Derivation, Zeroizing<[u8; KEY_BYTES]>) {
    // Cheap: what the numbers are does not matter here.
    let derivation = Derivation { memory_kib: 64, iterations: 1, ..Derivation::fresh() };
    let key = derivation.derive(&SecretString::from(password)).unwrap();
    (derivation, key)
}

fn object(key: &str, value: &[u8]) -> Record {
    Record::Object(v1::SnapshotObject { key: key.to_owned(), value: value.to_vec().into() })
}

/// Bytes that do not shrink.
fn noise(seed: u8, bytes: usize) -> Vec<u8> {
    let mut noise = vec![0; bytes];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut noise);
    noise
}

fn written(records: &[Record], (derivation, key): &(Derivation, Zeroizing<[u8; KEY_BYTES]>)) -> Vec<u8> {
    let header = header(derivation.clone(), Timestamp::UNIX_EPOCH, ("fluvial.test".into(), "c".into()), (17, 3));
    let mut writer = Writer::begin(Vec::new(), &header, key).unwrap();
    for record in records {
        writer.put(record.clone()).unwrap();
    }
    writer.finish(Footer { objects: records.len() as u64, ..Footer::default() }).unwrap()
}

fn read(bytes: &[u8], key: &Zeroizing<[u8; KEY_BYTES]>) -> Result<Vec<Record>, SnapshotError> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    let contents = inspect(file.path())?;
    let mut reader = Reader::open(file.path(), &contents, key)?;
    let mut records = Vec::new();
    while let Some(record) = reader.record()? {
        records.push(record);
    }
    Ok(records)
}

/// The same bytes with a checksum that fits, as somebody would have them who wants to deceive.
fn resealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let end = bytes.len() - DIGEST;
    let digest = blake3::hash(&bytes[..end]);
    bytes[end..].copy_from_slice(digest.as_bytes());
    bytes
}

fn several_pieces() -> Vec<Record> {
    (0..5_u8).map(|n| object(&format!("/k/{n}"), &noise(n, 700_000))).collect()
}

#[test]
fn records_come_back_and_what_they_hold_is_not_in_the_file() {
    let sealed = key("password");
    let mut records = several_pieces();
    records.push(object("/registry/secrets/hunter2", b"hunter2"));
    let bytes = written(&records, &sealed);
    assert!(bytes.len() > 3 * PIECE);
    assert_eq!(read(&bytes, &sealed.1).unwrap(), records);
    assert!(!bytes.windows(7).any(|window| window == b"hunter2"));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &bytes).unwrap();
    let contents = inspect(file.path()).unwrap();
    assert_eq!((contents.format, contents.bytes), (1, bytes.len() as u64));
    assert_eq!((contents.header.revision, contents.header.epoch, contents.footer.objects), (17, 3, 6));
    assert!(read(&written(&[], &sealed), &sealed.1).unwrap().is_empty());
}

#[test]
fn a_wrong_password_a_newer_format_and_a_strange_file_are_told_apart() {
    let sealed = key("password");
    let bytes = written(&[object("/a", b"1")], &sealed);
    let other = sealed.0.derive(&"passw0rd".into()).unwrap();
    assert!(matches!(read(&bytes, &other), Err(SnapshotError::Password)));
    let mut newer = bytes.clone();
    newer[MAGIC.len()] = 2;
    assert!(matches!(read(&resealed(newer), &sealed.1), Err(SnapshotError::Newer { found: 2 })));
    for strange in [&b""[..], b"fluvial", b"SQLite format 3\0 and more"] {
        assert!(matches!(read(strange, &sealed.1), Err(SnapshotError::NotASnapshot)));
    }
    let mut longer = bytes;
    longer.push(0);
    assert!(matches!(read(&longer, &sealed.1), Err(SnapshotError::Damaged { .. })));
}

#[test]
fn pieces_cannot_be_left_out_or_exchanged_and_header_and_footer_cannot_be_changed() {
    let sealed = key("password");
    let bytes = written(&several_pieces(), &sealed);
    let head = MAGIC.len() + 2;
    let header = u32::from_le_bytes(bytes[head..head + 4].try_into().unwrap()) as usize;
    let first = head + 4 + header;
    let piece = 4 + PIECE + TAG;
    let without_second = resealed([&bytes[..first + piece], &bytes[first + 2 * piece..]].concat());
    assert!(matches!(read(&without_second, &sealed.1), Err(SnapshotError::Damaged { .. })));
    // Cut after a whole piece, with the footer and a checksum that fits.
    let tail = bytes.len() - DIGEST - 4 - footer_length(&bytes) - 4;
    let short = resealed([&bytes[..first + piece], &bytes[tail..]].concat());
    assert!(read(&short, &sealed.1).is_err());
    let texts = [(r#""revision":17"#, r#""revision":99"#), (r#""objects":5"#, r#""objects":6"#)];
    for (old, new) in texts {
        let at = bytes.windows(old.len()).position(|window| window == old.as_bytes()).unwrap();
        let mut changed = bytes.clone();
        changed[at..at + new.len()].copy_from_slice(new.as_bytes());
        assert!(read(&resealed(changed), &sealed.1).is_err(), "{new}");
    }
}

fn footer_length(bytes: &[u8]) -> usize {
    let end = bytes.len() - DIGEST;
    let begins = bytes[..end].windows(11).rposition(|window| window == br#"{"objects":"#).unwrap();
    end - begins
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_changed_byte_and_any_cut_is_noticed(at in any::<prop::sample::Index>(), flip in 1..=255_u8, cut in any::<bool>()) {
        let sealed = key("password");
        let mut bytes = written(&[object("/a", b"1"), object("/b", &noise(9, 3000))], &sealed);
        let at = at.index(bytes.len());
        if cut {
            bytes.truncate(at);
            let noticed = matches!(read(&bytes, &sealed.1), Err(SnapshotError::Truncated | SnapshotError::NotASnapshot));
            prop_assert!(noticed, "cut at {at}");
        } else {
            bytes[at] ^= flip;
            prop_assert!(read(&bytes, &sealed.1).is_err(), "byte {at}");
        }
    }

    #[test]
    fn no_bytes_are_too_strange_for_the_reader(tail in prop::collection::vec(any::<u8>(), 0..2000)) {
        let sealed = key("password");
        let bytes = [&MAGIC[..], &1_u16.to_le_bytes(), &tail].concat();
        prop_assert!(read(&bytes, &sealed.1).is_err());
    }
}
