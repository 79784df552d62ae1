//! BLAKE3 of a file from its parts: every part is a subtree, hashed on its own, merged at the end.

use blake3::hazmat::{ChainingValue, HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root};
use fluvial_model::manifest::Digest;

/// The chaining value of the part at `offset`, a multiple of the part size, which is a power of two of at least 1 KiB.
pub(crate) fn part_value(offset: u64, data: &[u8]) -> ChainingValue {
    blake3::Hasher::new().set_input_offset(offset).update(data).finalize_non_root()
}

/// The digest of a file of `size` bytes from the values of its parts; at least two parts.
pub(crate) fn merge(size: u64, part_size: u64, values: &[ChainingValue]) -> Digest {
    let left = left_subtree_len(size);
    let (first, second) = split(left, part_size, values);
    let left_value = subtree(left, part_size, first);
    let right_value = subtree(size - left, part_size, second);
    Digest::from_bytes(*merge_subtrees_root(&left_value, &right_value, Mode::Hash).as_bytes())
}

fn subtree(size: u64, part_size: u64, values: &[ChainingValue]) -> ChainingValue {
    if let [value] = values {
        return *value;
    }
    let left = left_subtree_len(size);
    let (first, second) = split(left, part_size, values);
    merge_subtrees_non_root(&subtree(left, part_size, first), &subtree(size - left, part_size, second), Mode::Hash)
}

/// Of more than one part, the left subtree is a whole number of parts: both are powers of two.
fn split(left: u64, part_size: u64, values: &[ChainingValue]) -> (&[ChainingValue], &[ChainingValue]) {
    let parts = usize::try_from(left / part_size).expect("the number of parts fits in memory");
    values.split_at(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merged_parts_have_the_digest_of_the_whole() {
        let data: Vec<u8> = (0..300_000u32).map(|number| (number % 251) as u8).collect();
        for part_size in [1024usize, 2048, 65_536, 131_072] {
            for size in [part_size + 1, 2 * part_size, 2 * part_size + 1, 3 * part_size, 250_000] {
                let size = size.min(data.len());
                let data = &data[..size];
                let values: Vec<_> = data
                    .chunks(part_size)
                    .enumerate()
                    .map(|(number, part)| part_value((number * part_size) as u64, part))
                    .collect();
                assert_eq!(merge(size as u64, part_size as u64, &values), Digest::of(data), "{part_size} {size}");
            }
        }
    }
}
