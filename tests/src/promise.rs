//! What `docs/semantics.md` promises, quoted by the tests that hold it to it.

use std::path::Path;

/// Fails unless the page says so, word by word, wherever its lines break.
#[track_caller]
pub fn promised(sentence: &str) {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/semantics.md");
    let text = std::fs::read_to_string(page).expect("the page is there");
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words(&text).contains(&words(sentence)), "docs/semantics.md does not promise: {sentence}");
}
