//! README.md of a converted model: what it is, what was replaced, how well it does, and how to run it.

use std::fmt::Write;
use std::path::Path;

use crate::checkpoint::{Checkpoint, is_hub_id, shown};
use crate::evaluate::report::{Report, Score};
use crate::mixer::{self, Combine};
use crate::model::{Model, Student};
use crate::{Error, Result};

/// The whole card.
pub(super) fn card(model: &Model, student: &Student, teacher: &Checkpoint, reports: &[Report]) -> Result<String> {
    let mut card = front_matter(student, teacher)?;
    let mut add = |text: String| {
        card.push('\n');
        card.push_str(&text);
    };
    let teacher_name = &student.conversion.teacher;
    // Of a path only the folder's name: the rest says nothing to a reader elsewhere.
    let short = teacher_name.rsplit(['/', '\\', ':']).next().unwrap_or(teacher_name).to_string();
    let name = code(&hub_id(teacher_name, teacher).unwrap_or(short));
    add(format!("# {name} with linear attention\n"));
    add(format!(
        "The pretrained model {name} ({} parameters), converted by subquad {}. The recipe is [recipe.toml](recipe.toml).\n",
        model.spec.parameters(),
        env!("CARGO_PKG_VERSION")
    ));
    add(attention(model, student));
    if !reports.is_empty() {
        add(evaluation(reports)?);
    }
    add(RUNNING.to_string());
    if student.adapter.is_some() {
        add(ADAPTED.to_string());
    }
    Ok(card)
}

const RUNNING: &str = "\
## Running it

`DIR` is this folder, or its place on the Hub. It needs torch and transformers; its own code runs in `trust_remote_code`.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(\"DIR\", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(\"DIR\", trust_remote_code=True)
ids = tokenizer(\"Once upon a time\", return_tensors=\"pt\").to(model.device)
print(tokenizer.decode(model.generate(**ids, max_new_tokens=64)[0]))
```

```sh
lm_eval --model hf --model_args pretrained=DIR,trust_remote_code=True --tasks TASKS
subquad generate DIR --prompt \"Once upon a time\"
subquad evaluate DIR --text FILE
```

Tested with transformers 4.57.6 and 5.23.0, PEFT 0.21.2 and lm-eval 0.4.13. Where flash-linear-attention is installed and
a GPU is there, its kernels serve. `transformers serve` and subquad run this model. vLLM and llama.cpp, which run softmax
attention, do not: the `model_type` is of its own, so that none of them runs it as something that it is not.
";

const ADAPTED: &str = "\
The weights are those before the last low-rank update, which is the folder `adapter`, in PEFT's format. It belongs to this
model and not to the teacher, whose projections have the same names:

```python
from peft import PeftModel

model = PeftModel.from_pretrained(model, \"DIR/adapter\")
```
";

/// The teacher as others may know it: a Hub id, a built-in name, or the name of its folder without the way to it.
pub(super) fn published(name: &str, teacher: &Checkpoint) -> String {
    let short = || name.trim_end_matches(['/', '\\']).rsplit(['/', '\\']).next().unwrap_or(name).to_string();
    hub_id(name, teacher).unwrap_or_else(|| if Path::new(name).has_root() { short() } else { name.to_string() })
}

/// The teacher's repository on the Hub, where `name` is a Hub id, or a folder of the cache that Hub clients share.
fn hub_id(name: &str, teacher: &Checkpoint) -> Option<String> {
    let cached = Path::new(name).iter().find_map(|part| part.to_str()?.strip_prefix("models--")?.split_once("--"));
    let id = match cached {
        Some((owner, rest)) => format!("{owner}/{rest}"),
        // What was found at that path is a folder, whatever it looks like.
        None if teacher.path().ends_with(name) => return None,
        None => name.into(),
    };
    let repository = id.split_once('@').map_or(id.as_str(), |(repository, _)| repository);
    is_hub_id(repository).then(|| repository.to_string())
}

/// What the Hub reads: lines that are not known are left out.
fn front_matter(student: &Student, teacher: &Checkpoint) -> Result<String> {
    let mut lines = vec!["---".to_string()];
    if let Some(id) = hub_id(&student.conversion.teacher, teacher) {
        lines.push(format!("base_model: {id}"));
        lines.push("base_model_relation: finetune".into());
    }
    if let Some(license) = license(teacher)? {
        lines.push(format!("license: {license}"));
    }
    lines.push("library_name: transformers".into());
    lines.push("pipeline_tag: text-generation".into());
    lines.push("tags:".into());
    lines.push("- linear-attention".into());
    lines.push(format!("- {}", student.conversion.mixer));
    lines.push("- custom_code".into());
    lines.push("---\n".into());
    Ok(lines.join("\n"))
}

/// The licence that the teacher's own card names, where it is one of the Hub's plain identifiers.
pub(super) fn license(teacher: &Checkpoint) -> Result<Option<String>> {
    const MAX_BYTES: u64 = 1 << 20;
    let Ok(Some(bytes)) = teacher.files().read_at_most(super::names::CARD, MAX_BYTES) else { return Ok(None) };
    let text = String::from_utf8_lossy(&bytes);
    let mut lines = text.lines();
    if lines.next().map(str::trim_end) != Some("---") {
        return Ok(None);
    }
    let front = lines.take_while(|line| line.trim_end() != "---");
    let value = front.filter_map(|line| line.strip_prefix("license:")).map(str::trim).next();
    let plain = |v: &&str| !v.is_empty() && v.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.'));
    // `other` needs a name and a link beside it, which only a person can give.
    Ok(value.filter(plain).filter(|v| *v != "other").map(str::to_string))
}

/// What was replaced by what, and what was kept.
fn attention(model: &Model, student: &Student) -> String {
    let conversion = &student.conversion;
    let (layers, kept) = (model.spec.layers, &conversion.softmax_layers);
    let replaced = (0..layers).filter(|l| student.replaced(*l)).count();
    let mut text = format!(
        "## Attention\n\nSoftmax attention of {replaced} of {layers} layers was replaced by the mixer `{}`",
        conversion.mixer
    );
    if let Some(mixer) = mixer::find(&conversion.mixer) {
        let _ = write!(text, ", {}:\n\n```text\n{}\n```\n\n{}.", mixer.summary, mixer.formula, mixer.paper);
    }
    text.push_str("\n\n");
    match conversion.window {
        Some(window) => {
            let sinks = match window.sinks {
                0 => String::new(),
                n => format!(" and the first {n} of the text"),
            };
            let rest = match window.combine {
                Combine::Joint => "and everything else by the linear branch; both share one normaliser",
                Combine::Fixed => "and everything by the linear branch; the output is half of each",
                Combine::Learned => {
                    "and everything by the linear branch; the output is a learned share of each per head"
                }
            };
            let _ = writeln!(
                text,
                "- Window: each token sees the last {} keys{sinks}, its own included, by softmax attention, {rest}.",
                window.size
            );
        }
        None => text.push_str("- Window: none; every token is seen by the linear branch alone.\n"),
    }
    match kept.is_empty() {
        true => {
            text.push_str("- Layers that keep softmax attention: none. The state has the same size at any length.\n")
        }
        false => {
            let list = kept.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
            let grows = match kept.iter().all(|&layer| model.spec.blocks[layer].window.is_some()) {
                true => "They keep the teacher's window, so their state has a largest size.",
                false => "Their state grows with every token.",
            };
            let _ = writeln!(text, "- Layers that keep softmax attention: {list} (counted from 0). {grows}");
        }
    }
    text
}

/// One table per text: the model, its teacher, and its controls.
fn evaluation(reports: &[Report]) -> Result<String> {
    let mut text = String::from("## Evaluation\n");
    for report in reports {
        write_report(&mut text, report).map_err(|e| Error::Internal(e.to_string()))?;
    }
    Ok(text)
}

fn write_report(text: &mut String, report: &Report) -> std::fmt::Result {
    let Report { tokens, text: name, .. } = report;
    writeln!(text, "\n{}, {tokens} tokens in {}:\n", code(name), report.windows_in_words())?;
    writeln!(text, "| model | perplexity | KL to the teacher | same top token |")?;
    writeln!(text, "| --- | ---: | ---: | ---: |")?;
    let row = |name: &str, score: &Score| {
        let kl = score.kl.map(|kl| format!("{kl:.4}")).unwrap_or_default();
        let top1 = score.top1.map(|share| format!("{:.1}%", 100.0 * share)).unwrap_or_default();
        format!("| {} | {:.3} | {kl} | {top1} |", shown(name).replace('|', "\\|"), score.perplexity)
    };
    if let Some(perplexity) = report.teacher_perplexity {
        writeln!(text, "| teacher | {perplexity:.3} | | |")?;
    }
    writeln!(text, "{}", row("**this model**", &report.model))?;
    for control in &report.controls {
        writeln!(text, "{}", row(&control.name, &control.score))?;
    }
    match report.ratio() {
        Some(ratio) => writeln!(text, "\nPerplexity over the teacher's: {ratio:.4}. KL in nats per token."),
        None => Ok(()),
    }
}

/// Text that Markdown shows as it is.
fn code(text: &str) -> String {
    format!("`{}`", shown(text).replace('`', "'"))
}
