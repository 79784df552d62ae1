//! Trees of files to move, made from a seed, and whether two of them are the same.
//!
//! Comparison is by another tool (`diff -r`), so that no code of ours vouches for itself.

use std::path::Path;
use std::process::Command;

/// Bytes that look random and are the same for the same seed (SplitMix64, Steele, Lea and Flood 2014).
pub fn bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed;
    let mut out = Vec::with_capacity(length + 8);
    while out.len() < length {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        out.extend_from_slice(&(mixed ^ (mixed >> 31)).to_le_bytes());
    }
    out.truncate(length);
    out
}

/// Fills `folder` with `files` files of up to `largest` bytes each, in a few folders of different depths; some are
/// empty, some have odd names.
pub fn make(folder: &Path, seed: u64, files: usize, largest: usize) {
    for n in 0..files {
        let parent = match n % 7 {
            0 => folder.to_owned(),
            1 => folder.join("a b/ü"),
            k => folder.join(format!("d{k}/{}", n / 500)),
        };
        let name = match n % 50 {
            1 => format!("with space {n}.txt"),
            2 => format!("línea\nfeed-{n}"),
            3 => format!("日本-{n}.bin"),
            _ => format!("f{n}.dat"),
        };
        let draw = usize::try_from(u32::from_le_bytes(bytes(seed ^ n as u64, 4).try_into().expect("four bytes")))
            .expect("32 bits fit");
        let length = if n % 97 == 0 { 0 } else { draw % largest.max(1) };
        std::fs::create_dir_all(&parent).expect("a folder can be made");
        std::fs::write(parent.join(name), bytes(seed.wrapping_add(n as u64), length)).expect("a file can be written");
    }
}

/// What `diff -r` finds different; empty if the trees are the same.
pub fn difference(one: &Path, other: &Path) -> String {
    let output = Command::new("diff").arg("-rq").arg(one).arg(other).output().expect("diff can be started");
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}
