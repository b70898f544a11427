//! The Python files of an exported folder, by which transformers runs it.

use serde_json::{Value, json};

/// Name and text of each.
pub(super) static FILES: [(&str, &str); 2] = [
    ("configuration_subquad.py", include_str!("python/configuration_subquad.py")),
    ("modeling_subquad.py", include_str!("python/modeling_subquad.py")),
];

/// Where transformers finds the classes: both of the first two entries are needed.
pub(super) fn auto_map() -> Value {
    json!({
        "AutoConfig": "configuration_subquad.SubquadConfig",
        "AutoModel": "modeling_subquad.SubquadModel",
        "AutoModelForCausalLM": "modeling_subquad.SubquadForCausalLM",
    })
}

#[cfg(test)]
mod tests {
    use crate::mixer::MIXERS;

    #[test]
    fn every_mixer_is_in_the_modelling_file() {
        let text = super::FILES[1].1;
        let registered: Vec<&str> =
            text.lines().filter(|l| l.starts_with("@mixer(") || l.starts_with("@kernel(")).collect();
        for mixer in MIXERS {
            let name = format!("\"{}\"", mixer.name);
            assert_eq!(registered.iter().filter(|line| line.contains(&name)).count(), 1, "{name}");
        }
    }
}
