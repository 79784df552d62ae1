//! The checksum that an upload carries: CRC-64/NVME, which S3 computes over whole objects, parts or not.
//!
//! The store compares what arrives with it and refuses what differs; its answer carries the sum that it keeps. The sum of
//! an object in parts follows from those of its parts. Format: Amazon S3 API reference, "Checking object integrity":
//! eight bytes, the most significant first, in base64.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use crc_fast::{CrcAlgorithm, checksum_combine, crc64_nvme};

use super::client::{Header, Part};

/// The header of a request that says the sum, and of an answer that confirms it.
pub(super) const HEADER: &str = "x-amz-checksum-crc64nvme";
/// What stands around the sum in the answer to a completed upload.
pub(super) const START: &str = "<ChecksumCRC64NVME>";
pub(super) const END: &str = "</ChecksumCRC64NVME>";

/// A checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sum(u64);

impl Sum {
    pub(super) fn of(data: &[u8]) -> Self {
        Self(crc64_nvme(data))
    }

    /// The sum of these bytes followed by `length` others whose sum is `next`.
    pub(super) fn then(self, next: Self, length: u64) -> Self {
        Self(checksum_combine(CrcAlgorithm::Crc64Nvme, self.0, next.0, length))
    }

    /// The sum that a header or an element has; `None` for anything else.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let bytes = STANDARD.decode(text.trim()).ok()?;
        Some(Self(u64::from_be_bytes(bytes.try_into().ok()?)))
    }
}

impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0.to_be_bytes()))
    }
}

/// Whether a code of the store says that the bytes did not have the sum that was sent with them.
pub(super) fn is_mismatch(code: &str) -> bool {
    matches!(code, "BadDigest" | "XAmzContentChecksumMismatch" | "ContentChecksumMismatch")
}

/// The headers that start an upload whose parts carry sums.
pub(super) fn upload_headers() -> Vec<Header> {
    vec![("x-amz-checksum-algorithm", "CRC64NVME".to_owned()), ("x-amz-checksum-type", "FULL_OBJECT".to_owned())]
}

/// The headers that complete such an upload.
pub(super) fn whole_headers(whole: Sum) -> Vec<Header> {
    vec![(HEADER, whole.to_string()), ("x-amz-checksum-type", "FULL_OBJECT".to_owned())]
}

/// The body that completes an upload.
pub(super) fn parts_xml(parts: &[Part], with_sums: bool) -> String {
    let mut xml = String::from("<CompleteMultipartUpload xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">");
    for (number, part) in parts.iter().enumerate() {
        let etag = part.etag.replace('&', "&amp;").replace('<', "&lt;");
        let sum = part.sum.filter(|_| with_sums).map(|sum| format!("{START}{sum}{END}")).unwrap_or_default();
        xml.push_str(&format!("<Part><ETag>{etag}</ETag><PartNumber>{}</PartNumber>{sum}</Part>", number + 1));
    }
    xml.push_str("</CompleteMultipartUpload>");
    xml
}

/// What the journal keeps of a part: its ETag and, where it was sent with one, its sum and length, and whether the store
/// confirmed it.
pub(super) fn receipt(etag: &str, sent: Option<(Sum, u64)>, confirmed: bool) -> String {
    match sent {
        Some((Sum(sum), length)) => format!("{etag} {sum:016x} {length} {}", u8::from(confirmed)),
        None => etag.to_owned(),
    }
}

/// What receipts say together.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Receipts {
    pub(super) parts: Vec<Part>,
    /// The sum of the whole, if every part was sent with one and together they have the size of the file.
    pub(super) whole: Option<Sum>,
    /// Whether the store confirmed the sum of every part.
    pub(super) confirmed: bool,
}

/// Takes receipts apart.
pub(super) fn from_receipts(receipts: &[String], size: u64) -> Receipts {
    let mut parts = Vec::with_capacity(receipts.len());
    let (mut whole, mut all_confirmed) = (Some((Sum::of(b""), 0u64)), true);
    for receipt in receipts {
        let mut words = receipt.split(' ');
        let etag = words.next().unwrap_or_default().to_owned();
        let sum = words.next().and_then(|sum| u64::from_str_radix(sum, 16).ok()).map(Sum);
        let length = words.next().and_then(|length| length.parse::<u64>().ok());
        all_confirmed &= words.next() == Some("1");
        whole = whole
            .zip(sum.zip(length))
            .map(|((whole, before), (sum, length))| (whole.then(sum, length), before.saturating_add(length)));
        parts.push(Part { etag, sum });
    }
    let whole = whole.filter(|(_, total)| *total == size).map(|(whole, _)| whole);
    Receipts { parts, whole, confirmed: all_confirmed }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_is_the_one_of_the_catalogue_of_crcs() {
        // The check value of CRC-64/NVME: its sum of the nine digits.
        assert_eq!(Sum::of(b"123456789"), Sum(0xae8b_1486_0a79_9888));
        assert_eq!(Sum::parse(&Sum(1).to_string()), Some(Sum(1)));
        assert_eq!(Sum(1).to_string(), "AAAAAAAAAAE=");
        for bad in ["", "AAAA", "not base64!", "AAAAAAAAAAEA"] {
            assert_eq!(Sum::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_sum_of_a_whole_follows_from_its_parts_wherever_it_is_cut() {
        let data: Vec<u8> = (0..10_000u32).map(|number| (number * number % 253) as u8).collect();
        for cuts in [vec![0, 10_000], vec![1, 10_000], vec![4096, 8192, 10_000], vec![10_000]] {
            let mut receipts = Vec::new();
            let mut from = 0;
            for to in cuts {
                receipts.push(receipt("\"e\"", Some((Sum::of(&data[from..to]), (to - from) as u64)), true));
                from = to;
            }
            let read = from_receipts(&receipts, 10_000);
            assert_eq!((read.whole, read.confirmed, read.parts.len()), (Some(Sum::of(&data)), true, receipts.len()));
            assert_eq!(from_receipts(&receipts, 9_999).whole, None, "another size is another file");
        }
    }

    #[test]
    fn one_part_without_a_sum_leaves_the_whole_without() {
        let first = receipt("\"a\"", Some((Sum(5), 3)), true);
        let read = from_receipts(&[first.clone(), receipt("\"b\"", None, false)], 3);
        assert_eq!((read.whole, read.confirmed), (None, false));
        assert_eq!(read.parts[1], Part { etag: "\"b\"".into(), sum: None });
        assert_eq!(parts_xml(&read.parts, false).matches(START).count(), 0);
        // Sent but not confirmed: the store may want to hear it at the end, but it proves nothing.
        let read = from_receipts(&[first, receipt("\"b\"", Some((Sum(7), 4)), false)], 7);
        assert!(read.whole.is_some() && !read.confirmed);
    }
}
