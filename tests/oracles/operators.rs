//! Core operators against other people's recurrences: fixtures of tests/python/operator_fixtures.py, outputs, final
//! states, and gradients of every input and initial state.

use super::*;
use subquad::Result;
use subquad::ops::attention_mask::KvLayout;
use subquad::ops::broadcast::{add, mul, scale};
use subquad::ops::delta_rule::delta_rule;
use subquad::ops::dplr::dplr;
use subquad::ops::gated_linear_attention::gated_linear_attention;
use subquad::ops::linear_attention::linear_attention;
use subquad::ops::mlstm::{Inputs, Memory, mlstm};
use subquad::ops::normalize::normalize;
use subquad::ops::shape::{concat_last, narrow_last, pick_micro_step, place_micro_step};
use subquad::ops::softmax::softmax;
use subquad::ops::unary::{Unary, unary};
use subquad::ops::value_gated_linear_attention::value_gated_linear_attention;
use subquad::ops::{Documents, Var};

const TOKENS: usize = 17;
const HEADS: usize = 2;

/// A fixture's inputs, tracked where it has their gradients.
struct Given {
    vars: BTreeMap<String, Var>,
    factor: f32,
}

impl Given {
    fn get(&self, name: &str) -> &Var {
        &self.vars[name]
    }

    /// A query times the fixture's scale.
    fn scaled(&self, name: &str) -> Result<Var> {
        scale(self.get(name), self.factor, 0.0)
    }

    /// One number per token and head as [B, T, H, 1].
    fn per_head(&self, name: &str) -> Result<Var> {
        let mut dims = self.get(name).value().dims().to_vec();
        dims.push(1);
        self.get(name).reshape(&dims)
    }

    /// q scaled, k and v.
    fn qkv(&self) -> Result<(Var, Var, Var)> {
        Ok((self.scaled("q")?, self.get("k").clone(), self.get("v").clone()))
    }
}

/// Output and final states by their names in the fixture.
type Outputs = (Var, Vec<(&'static str, Var)>);

fn holds(name: &str, run: impl Fn(&Given) -> Result<Outputs>) {
    let path = format!("{}/tests/fixtures/operator_{name}.safetensors", env!("CARGO_MANIFEST_DIR"));
    let x: BTreeMap<String, Tensor> = load_tensors(path.as_ref()).unwrap().0;
    let tape = Tape::new();
    let var = |name: &str, value: &Tensor| match x.contains_key(&format!("grad.{name}")) {
        true => tape.leaf(value.clone()),
        false => value.clone().into(),
    };
    let vars: BTreeMap<String, Var> = x.iter().map(|(name, value)| (name.clone(), var(name, value))).collect();
    let given = Given { vars, factor: x["scale"].to_vec1::<f32>().unwrap()[0] };
    let (output, finals) = run(&given).unwrap();
    let same = |what: &str, got: &Tensor, want: &Tensor| {
        let d = difference(got, want);
        assert!(d < TOLERANCE, "{name}: {what} differs by {d:.1e}");
    };
    same("output", output.value(), &x["output"]);
    let mut seeds = vec![(&output, x["output_gradient"].clone())];
    for (part, var) in &finals {
        same(part, var.value(), &x[*part]);
        seeds.extend(x.get(&format!("{part}_gradient")).map(|up| (var, up.clone())));
    }
    let mut gradients = tape.backward(seeds).unwrap();
    for (key, want) in &x {
        if let Some(input) = key.strip_prefix("grad.") {
            let got = gradients.take(given.get(input)).unwrap_or_else(|| panic!("{name}: no gradient of {input}"));
            same(key, &got, want);
        }
    }
}

fn whole() -> std::sync::Arc<Documents> {
    Documents::whole(1, TOKENS)
}

/// S = decay S + k v^T, with a gate made of the fixture's.
fn decayed(name: &str, gate: impl Fn(&Given) -> Result<Option<Var>>, bonus: Option<&str>) {
    holds(name, |x| {
        let ((q, k, v), gate) = (x.qkv()?, gate(x)?);
        let bonus = bonus.map(|name| x.get(name));
        let (o, s) = gated_linear_attention(&q, &k, &v, gate.as_ref(), bonus, Some(x.get("initial")), &whole())?;
        Ok((o, vec![("final", s)]))
    });
}

#[test]
fn decays() {
    decayed("linear", |_| Ok(None), None);
    decayed("scalar_decay", |x| Ok(Some(x.per_head("g")?)), None);
    decayed("vector_decay", |x| Ok(Some(x.get("g").clone())), None);
    decayed("bonus", |x| Ok(Some(x.get("g").clone())), Some("u"));
    let repeated = |x: &Given| {
        let zeros = Tensor::zeros((1, TOKENS, HEADS, 1), candle_core::DType::F32, &candle_core::Device::Cpu)?;
        Ok(Some(add(&zeros.into(), &x.per_head("g")?)?))
    };
    decayed("constant_decay", repeated, None);
}

#[test]
fn normalised() {
    holds("linear_normalised", |x| {
        let ((q, k, v), before) = (x.qkv()?, (x.get("initial"), x.get("initial_z")));
        let y = linear_attention(&q, &k, &v, None, &whole(), &KvLayout::none(1), Some(before))?;
        Ok((normalize(&y.num, &y.den, 1e-10)?, vec![("final", y.state), ("final_z", y.normaliser)]))
    });
}

#[test]
fn delta_rules() {
    let rule = |name: &str, gate: fn(&Given) -> Result<Option<Var>>| {
        holds(name, |x| {
            let ((q, k, v), beta, gate) = (x.qkv()?, x.per_head("beta")?, gate(x)?);
            let (o, s) = delta_rule(&q, &k, &v, &beta, gate.as_ref(), Some(x.get("initial")), &whole())?;
            Ok((o, vec![("final", s)]))
        });
    };
    rule("delta", |_| Ok(None));
    rule("gated_delta", |x| Ok(Some(x.per_head("g")?)));
    rule("kda", |x| Ok(Some(x.get("g").clone())));
}

#[test]
fn two_writes_a_token() {
    holds("delta_product", |x| {
        let ((q, k, v), beta) = (x.qkv()?, x.per_head("beta")?);
        let (q, gate) = (place_micro_step(&q, 2, 1)?, place_micro_step(&x.per_head("g")?, 2, 0)?);
        let (o, s) = delta_rule(&q, &k, &v, &beta, Some(&gate), Some(x.get("initial")), &whole().times(2))?;
        Ok((pick_micro_step(&o, 2, 1)?, vec![("final", s)]))
    });
}

#[test]
fn diagonal_plus_low_rank() {
    holds("dplr", |x| {
        let (q, k, v) = x.qkv()?;
        let transition = (x.get("a"), x.get("b"));
        let (o, s) = dplr((&q, &k, &v), transition, Some(x.get("g")), Some(x.get("initial")), &whole())?;
        Ok((o, vec![("final", s)]))
    });
    holds("rwkv7", |x| {
        let (r, kk) = (x.scaled("r")?, x.get("kk"));
        let (a, b) = (scale(kk, -1.0, 0.0)?, mul(kk, x.get("alpha"))?);
        let inputs = (&r, x.get("k"), x.get("v"));
        let (o, s) = dplr(inputs, (&a, &b), Some(x.get("g")), Some(x.get("initial")), &whole())?;
        Ok((o, vec![("final", s)]))
    });
}

/// Two passes: decay on the side of the values, then on that of the keys.
#[test]
fn slots() {
    holds("slots", |x| {
        let ((q, k, v), s, g) = (x.qkv()?, x.get("s"), x.get("g"));
        let (p, keys) = value_gated_linear_attention(&q, &k, s, g, Some(x.get("initial_k")), &whole())?;
        let p = softmax(&p, None)?;
        let (o, values) = gated_linear_attention(&p, s, &v, Some(g), None, Some(x.get("initial_v")), &whole())?;
        Ok((o, vec![("final_k", keys), ("final_v", values)]))
    });
}

/// The two may choose different m: what is compared is C and n at the fixture's.
#[test]
fn matrix_memory() {
    for (name, continued) in [("mlstm", false), ("mlstm_state", true)] {
        holds(name, |x| {
            let (q, k, v) = x.qkv()?;
            let (forget, input) = (unary(&x.per_head("f")?, Unary::LogSigmoid)?, x.per_head("i")?);
            let before = if continued {
                let sums = concat_last(&[x.get("initial_c"), &x.per_head("initial_n")?])?;
                Memory { sums, maximum: x.get("initial_m").clone() }
            } else {
                Memory::zero(1, HEADS, k.value().dim(3)?, v.value().dim(3)?, v.value().device())?
            };
            let inputs = Inputs { q: &q, k: &k, v: &v, forget: &forget, input: &input };
            let (o, after) = mlstm(inputs, &before, 1e-6, &whole())?;
            let width = v.value().dim(3)?;
            let level = (after.maximum.value() - x.get("final_m").value())?.exp()?;
            let dims = [1, HEADS, 1, 1];
            let sums = mul(&after.sums, &Var::from(level.reshape(&dims)?))?;
            let n = narrow_last(&sums, width, 1)?.reshape(&[1, HEADS, k.value().dim(3)?])?;
            Ok((o, vec![("final_c", narrow_last(&sums, 0, width)?), ("final_n", n)]))
        });
    }
}
