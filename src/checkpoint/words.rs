//! Words for messages: names from foreign files made safe to print, and the nearest of known names.

/// Longest text that is compared or printed whole: names come from files that may be hostile.
const MAX_LENGTH: usize = 160;

/// `text` for a message: control characters escaped, cut when it is long.
pub(crate) fn shown(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars().take(MAX_LENGTH) {
        match c.is_control() {
            true => out.extend(c.escape_debug()),
            false => out.push(c),
        }
    }
    if text.chars().nth(MAX_LENGTH).is_some() {
        out.push('…');
    }
    out
}

/// The candidate that `word` most likely stands for: a letter in three may be wrong, or one, or the end may be missing.
/// Of equals the first.
pub(crate) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if word.len() > MAX_LENGTH {
        return None;
    }
    let allowed = (word.chars().count() / 3).max(1);
    let word = word.to_lowercase();
    let near = |candidate: &'a str| {
        let lower = candidate.to_lowercase();
        let distance = strsim::damerau_levenshtein(&word, &lower);
        let begins = word.chars().count() >= 3 && lower.starts_with(&word);
        (distance <= allowed || begins).then_some((distance, candidate))
    };
    let candidates = candidates.into_iter().filter(|candidate| candidate.len() <= MAX_LENGTH);
    candidates.filter_map(near).min_by_key(|(distance, _)| *distance).map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_prefers_the_most_alike_and_refuses_strangers() {
        let known = ["llama", "mistral", "gpt2"];
        assert_eq!(nearest("Lama", known), Some("llama"));
        assert_eq!(nearest("mist", known), Some("mistral"));
        assert_eq!(nearest("zebra", known), None);
        assert_eq!(nearest(&"l".repeat(100_000), known), None);
    }

    #[test]
    fn shown_escapes_and_cuts() {
        assert_eq!(shown("a\u{1b}[31m \"b\""), "a\\u{1b}[31m \"b\"");
        assert_eq!(shown(&"x".repeat(1000)).chars().count(), MAX_LENGTH + 1);
    }
}
