//! The Python files of an exported folder, by which transformers runs it.

use serde_json::{Value, json};

/// Name and text of each.
pub(super) const FILES: [(&str, &str); 2] = [
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
