//! Bytes that nobody meant: inputs of a corpus, changed at random, given to a parser that must refuse or take them, and
//! neither panic nor dawdle.
//!
//! An input is named by its seed and number, so that it can be made again; a failure prints its bytes too, and belongs
//! into the corpus then. Absent on purpose: guidance by coverage, which needs another compiler (decision 0016).

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use crate::random::{Random, number, seed};

/// How long each target runs if `FLUVIAL_FUZZ_SECONDS` does not say.
const BRIEFLY: Duration = Duration::from_secs(2);
/// No parser may take longer for one input, on a busy machine and without optimisation.
const SLOW: Duration = Duration::from_secs(5);
/// The longest input: what grows beyond is cut.
const LONGEST: usize = 64 * 1024;
/// What parsers tend to stumble over.
const PIECES: &[&[u8]] = &[
    b"",
    b"\0",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    b"\x80",
    b"%",
    b"%00",
    b"%ff",
    b"..",
    b"/",
    b"//",
    b"~1",
    b"-1",
    b"18446744073709551616",
    b"1e999",
    b"\"",
    b"\\u0000",
    b"[[[[[[[[",
    b"{\"a\":",
    b"\xf0\x9f\x92\xa9",
    b"\xed\xa0\x80",
    b",,",
    b"=",
    b"!in (",
    b"\r\n",
    b"-----BEGIN ",
    b"'; --",
];

/// Gives `parse` inputs made of `corpus` for as long as a run lasts.
///
/// # Panics
/// If `parse` does, or takes too long; with the input.
pub fn run(target: &str, corpus: &[&[u8]], parse: impl Fn(&[u8])) {
    let seed = seed();
    let lasts = number("FLUVIAL_FUZZ_SECONDS").map_or(BRIEFLY, Duration::from_secs);
    let ends = Instant::now() + lasts;
    let mut made = 0_u64;
    while made < corpus.len() as u64 || Instant::now() < ends {
        let input = input(corpus, seed, made);
        let began = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| parse(&input)));
        let took = began.elapsed();
        if outcome.is_err() || took > SLOW {
            let text = String::from_utf8_lossy(&input).into_owned();
            let hex: String = input.iter().take(2048).map(|byte| format!("{byte:02x}")).collect();
            panic!("{target}: input {made} of FLUVIAL_SEED={seed} failed after {took:?}: {text:?} ({hex})");
        }
        made += 1;
    }
    eprintln!("{target}: {made} inputs, FLUVIAL_SEED={seed}");
}

/// Input `number` of a run: first the corpus as it is, then changes of it.
fn input(corpus: &[&[u8]], seed: u64, number: u64) -> Vec<u8> {
    let count = corpus.len() as u64;
    let pick = |at: u64| corpus[usize::try_from(at % count).expect("a small number")].to_vec();
    if number < count {
        return pick(number);
    }
    let mut random = Random::new(seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mut input = pick(random.below(count));
    for _ in 0..=random.below(6) {
        let other = pick(random.below(count));
        change(&mut input, &other, &mut random);
    }
    input.truncate(LONGEST);
    input
}

fn change(input: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    let mut below = |limit: usize| usize::try_from(random.below(limit.max(1) as u64)).expect("a small number");
    let at = below(input.len() + 1);
    let end = (at + below(16)).min(input.len());
    match below(8) {
        0 if at < input.len() => input[at] ^= 1 << below(8),
        1 if at < input.len() => input[at] = u8::try_from(below(256)).expect("a byte"),
        2 => drop(input.drain(at..end)),
        3 => input.truncate(at),
        4 => {
            let part = input[at..end].repeat(1 + below(64));
            input.splice(at..at, part);
        }
        5 => {
            // The rest of another.
            let from = below(other.len() + 1);
            input.truncate(at);
            input.extend_from_slice(&other[from..]);
        }
        6 => {
            let piece = PIECES[below(PIECES.len())].repeat(1 + below(3));
            input.splice(at..at, piece);
        }
        _ => {
            let piece = PIECES[below(PIECES.len())];
            input.splice(at..end, piece.iter().copied());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_can_be_made_again_and_a_parser_that_breaks_is_found() {
        let corpus: &[&[u8]] = &[b"abc", b"[1, 2]"];
        assert_eq!(input(corpus, 7, 100), input(corpus, 7, 100));
        assert_eq!(input(corpus, 7, 0), b"abc");
        let breaks = |bytes: &[u8]| assert!(!bytes.contains(&b'%'), "a parser that cannot bear a percent sign");
        assert!(catch_unwind(|| run("a broken parser", corpus, breaks)).is_err());
    }
}
