//! Words for messages: names from foreign files made safe to print, and the nearest of known names.

/// Longest text that is compared or printed whole: names come from files that may be hostile.
const LONGEST: usize = 160;

/// `text` for a message: control characters escaped, cut when it is long.
pub(crate) fn shown(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars().take(LONGEST) {
        match c.is_control() {
            true => out.extend(c.escape_debug()),
            false => out.push(c),
        }
    }
    if text.chars().nth(LONGEST).is_some() {
        out.push('…');
    }
    out
}

/// The candidate most like `word`, if any is like it at all. Of equals the first.
pub(crate) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if word.len() > LONGEST {
        return None;
    }
    let word = word.to_lowercase();
    let mut best: Option<(&str, f64)> = None;
    for candidate in candidates.into_iter().filter(|c| c.len() <= LONGEST) {
        let likeness = strsim::normalized_damerau_levenshtein(&word, &candidate.to_lowercase());
        if likeness >= 0.6 && best.is_none_or(|(_, b)| likeness > b) {
            best = Some((candidate, likeness));
        }
    }
    best.map(|(candidate, _)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_prefers_the_most_alike_and_refuses_strangers() {
        let known = ["llama", "mistral", "gpt2"];
        assert_eq!(nearest("Lama", known), Some("llama"));
        assert_eq!(nearest("zebra", known), None);
        assert_eq!(nearest(&"l".repeat(100_000), known), None);
    }

    #[test]
    fn shown_escapes_and_cuts() {
        assert_eq!(shown("a\u{1b}[31m \"b\""), "a\\u{1b}[31m \"b\"");
        assert_eq!(shown(&"x".repeat(1000)).chars().count(), LONGEST + 1);
    }
}
