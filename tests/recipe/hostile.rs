//! Text that is no recipe: never a panic, never slow.

use subquad::recipe::{EMBEDDED, render};

use super::{VALID, errors, parse};

#[test]
fn no_text_makes_the_reader_panic() {
    let full = EMBEDDED.iter().map(|(_, text)| *text).max_by_key(|text| text.len()).unwrap();
    let survives = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes);
        if let Err(error) = parse(&text, &[]) {
            for place in render(&error, true).lines() {
                assert!(!place.contains('\u{7}'));
            }
        }
    };
    for end in 0..full.len() {
        survives(&full.as_bytes()[..end]);
    }
    // xorshift: the same flips every time.
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    for _ in 0..1500 {
        let mut bytes = full.as_bytes().to_vec();
        for _ in 0..1 + random(6) {
            let at = random(bytes.len());
            match random(3) {
                0 => bytes[at] ^= 1 << random(8),
                1 => bytes[at] = b"[]{}=\"'.,#\n\t\\0-"[random(15)],
                _ => drop(bytes.remove(at)),
            }
        }
        survives(&bytes);
    }
}

#[test]
fn absurd_text_is_refused_quickly() {
    let start = std::time::Instant::now();
    for text in [
        "a.".repeat(50_000),
        format!("[{}a]", "a.".repeat(50_000)),
        "[".repeat(100_000),
        format!("x = {}", "[".repeat(100_000)),
        format!("x = {}", "{a=".repeat(50_000)),
        "]\n".repeat(50_000),
        "x = [\n".repeat(20_000),
        "\"\"\"\n".repeat(20_001),
        "\0".repeat(100_000),
    ] {
        let found = errors(&text, &[]);
        assert_eq!(found.len(), 1, "{:?}...", &text[..20]);
    }
    let dashes = format!("stage.0.tokens={}", "-".repeat(100_000));
    let dots = format!("{}=1", "a.".repeat(50_000));
    let nested = format!("seed={}", "{a=".repeat(50_000));
    assert_eq!(errors(VALID, &[&dashes, &dots, &nested]).len(), 3);
    assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
}
