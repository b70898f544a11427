//! A [`Spec`] in words: what of it differs between teachers.

use super::format;
use crate::arch::{Activation, Layout, NormKind, QkNorm, Rope, Scaling, Spec};

/// Lines of a table, each a name and what is to be said.
pub(super) fn lines(spec: &Spec) -> Vec<(&'static str, String)> {
    let mut lines = vec![
        ("heads", format!("{} on {} key-value heads, width {}", spec.heads, spec.kv_heads, spec.head_width)),
        ("mlp", mlp(spec)),
        ("norms", norms(spec)),
        ("positions", positions(spec)),
    ];
    let windows = by_layer(spec, |layer| spec.blocks[layer].window.map(|window| window.to_string()));
    if !windows.is_empty() {
        lines.push(("window", windows));
    }
    if !spec.biases.is_empty() {
        lines.push(("biases", spec.biases.iter().map(|t| t.word()).collect::<Vec<_>>().join(", ")));
    }
    let usual = 1.0 / (spec.head_width as f64).sqrt();
    let scales = by_layer(spec, |layer| {
        Some(spec.blocks[layer].scale).filter(|scale| *scale != usual).map(|scale| format!("scaled by {scale:.4}"))
    });
    let cap = spec.score_cap.map(|cap| format!("capped at {cap}"));
    let scores: Vec<String> = [scales].into_iter().filter(|s| !s.is_empty()).chain(cap).collect();
    if !scores.is_empty() {
        lines.push(("scores", scores.join(", ")));
    }
    let cap = spec.logit_cap.map(|cap| format!("logits capped at {cap}"));
    let factors = [
        ("embedding", spec.multipliers.embedding),
        ("residual", spec.multipliers.residual),
        ("logits", spec.multipliers.logits),
    ];
    let factors = factors.iter().filter(|(_, factor)| *factor != 1.0).map(|(name, x)| format!("{name} times {x:.4}"));
    let others: Vec<String> = factors.chain(cap).collect();
    if !others.is_empty() {
        lines.push(("factors", others.join(", ")));
    }
    lines
}

fn mlp(spec: &Spec) -> String {
    let activation = match spec.activation {
        Activation::Silu => "silu",
        Activation::Gelu => "gelu",
        Activation::GeluTanh => "gelu by tanh",
        Activation::Relu => "relu",
    };
    let kind = if spec.gated { format!("gated {activation}") } else { activation.into() };
    let dense: Vec<usize> = (0..spec.layers).filter(|&layer| spec.experts_of(layer).is_none()).collect();
    let experts = spec.experts.map(|e| {
        let shares = if e.normalised { ", their shares summing to 1" } else { "" };
        format!("{} experts of {}, {} for a token{shares}", e.count, e.ffn, e.per_token)
    });
    match (experts, dense.len()) {
        (Some(experts), 0) => format!("{experts}; {kind}"),
        (Some(experts), _) => format!("{experts}; {} in layers {}; {kind}", spec.ffn, format::ranges(&dense)),
        (None, _) => format!("{}, {kind}", spec.ffn),
    }
}

fn norms(spec: &Spec) -> String {
    let kind = match spec.norm.kind {
        NormKind::Rms => "RMSNorm",
        NormKind::RmsPlusOne => "RMSNorm with one plus its weight",
        NormKind::Layer => "LayerNorm",
    };
    let place = match spec.layout {
        Layout::Pre => "before attention and MLP",
        Layout::Post => "after attention and MLP",
        Layout::Sandwich => "before and after attention and MLP",
        Layout::Parallel => "before attention and MLP, which stand side by side",
        Layout::ParallelShared => "one before attention and MLP, which stand side by side",
    };
    let heads = match spec.qk_norm {
        None => "",
        Some(QkNorm::Head) => "; of q and k, head by head",
        Some(QkNorm::Full) => "; of q and k, all heads together",
    };
    format!("{kind}, eps {}, {place}{heads}", spec.norm.eps)
}

fn positions(spec: &Spec) -> String {
    if let Some(learned) = spec.positions {
        return format!("{} learned", learned.tokens());
    }
    by_layer(spec, |layer| {
        Some(spec.blocks[layer].rope.map_or("none".into(), |index| rope(&spec.ropes[index], spec.head_width)))
    })
}

fn rope(rope: &Rope, head_width: usize) -> String {
    let part = match rope.width == head_width {
        true => String::new(),
        false => format!(" on {} of {head_width} channels", rope.width),
    };
    let scaling = match &rope.scaling {
        Scaling::None => String::new(),
        Scaling::Linear { factor } => format!(", linear by {factor}"),
        Scaling::Dynamic { factor, context } => format!(", dynamic by {factor} beyond {context} tokens"),
        Scaling::Llama3 { factor, context, .. } => format!(", llama3 by {factor} from {context} tokens"),
        Scaling::Yarn { factor, context, .. } => format!(", yarn by {factor} from {context} tokens"),
        Scaling::Long { context, .. } => format!(", longrope beyond {context} tokens"),
    };
    format!("rope theta {}{part}{scaling}", rope.theta)
}

/// What is said of each layer, and of which layers where they differ.
fn by_layer(spec: &Spec, of: impl Fn(usize) -> Option<String>) -> String {
    let mut groups: Vec<(String, Vec<usize>)> = vec![];
    for layer in 0..spec.layers {
        let Some(text) = of(layer) else { continue };
        match groups.iter_mut().find(|(other, _)| *other == text) {
            Some((_, layers)) => layers.push(layer),
            None => groups.push((text, vec![layer])),
        }
    }
    let said = groups.iter().map(|(text, layers)| match layers.len() == spec.layers {
        true => text.clone(),
        false => format!("{text} in layers {}", format::ranges(layers)),
    });
    said.collect::<Vec<_>>().join("; ")
}
