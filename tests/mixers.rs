//! The suite of mixers: whatever is registered is held to what a mixer promises, beside every window that it allows.

mod common;

use candle_core::Tensor;
use common::{difference, largest, random};
use std::sync::Arc;
use subquad::mixer::{self, Bound, Branches, Heads, MIXERS, Mixer, Registration, Site, State, Window};
use subquad::ops::rope::Rotary;
use subquad::ops::{Documents, Tape, Var};

const TOLERANCE: f64 = 5e-5;

fn site(heads: usize, kv_heads: usize, width: usize, layer: usize) -> Site {
    Site { heads, kv_heads, width, model_width: heads * width, layer, layers: 4 }
}

/// Every registered mixer, alone and beside each window that it allows.
fn all() -> impl Iterator<Item = (&'static Registration, Option<Window>)> {
    MIXERS.iter().flat_map(|m| {
        let windows = m.combine.iter().flat_map(|&combine| {
            [(1, 0), (16, 0), (16, 3), (64, 0), (200, 0)].map(|(size, sinks)| Some(Window { size, sinks, combine }))
        });
        [None].into_iter().chain(windows).map(move |w| (m, w))
    })
}

fn build(m: &Registration, site: Site, window: Option<Window>) -> Box<dyn Mixer> {
    mixer::build(m.name, &Default::default(), site, window).unwrap()
}

/// A mixer's tensors moved away from their initial values, where symmetries would hide mistakes.
fn tensors(mixer: &dyn Mixer) -> Vec<(String, Tensor)> {
    let moved = |(i, t): (usize, mixer::NewTensor)| {
        let start = t.initial.tensor(t.name, &t.shape, 0).unwrap();
        (t.name.to_string(), (start + random(10 + i as u64, &t.shape, 0.3)).unwrap())
    };
    mixer.tensors().into_iter().enumerate().map(moved).collect()
}

fn bound(mixer: &dyn Mixer) -> Bound {
    Bound(tensors(mixer).into_iter().map(|(name, t)| (name, t.into())).collect())
}

/// A layer's projections of `tokens` random tokens.
struct Layer {
    input: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rotary: Rotary,
}

impl Layer {
    fn new(site: Site, batch: usize, tokens: usize) -> Layer {
        let Site { heads, kv_heads, width, model_width, .. } = site;
        Layer {
            input: random(4, &[batch, tokens, model_width], 1.0),
            q: random(1, &[batch, tokens, heads, width], 2.0),
            k: random(2, &[batch, tokens, kv_heads, width], 2.0),
            v: random(3, &[batch, tokens, kv_heads, width], 1.0),
            rotary: Rotary::new(width, 100.0),
        }
    }

    fn part(&self, from: usize, n: usize) -> Heads {
        let cut = |x: &Tensor| Var::from(x.narrow(1, from, n).unwrap().contiguous().unwrap());
        let heads = Heads::new(cut(&self.q), cut(&self.k), cut(&self.v)).unwrap();
        heads.of_layer(cut(&self.input), Some(self.rotary.angles(from, n)))
    }

    fn whole(&self) -> Heads {
        self.part(0, self.q.dim(1).unwrap())
    }
}

fn close(what: &str, got: &Tensor, want: &Tensor) {
    let d = difference(got, want);
    assert!(d < TOLERANCE, "{what}: differs by {d:.1e}");
}

/// Whole sequence at once = cut in two anywhere = token by token, outputs and states.
#[test]
fn chunked_is_recurrent_wherever_it_is_cut() {
    let (batch, tokens) = (2, 90);
    for (m, window) in all() {
        for layer in [0, 3] {
            let site = site(4, 2, 8, layer);
            let x = Layer::new(site, batch, tokens);
            let (mixer, what) = (build(m, site, window), format!("{} beside {window:?}, layer {layer}", m.name));
            let bound = bound(&*mixer);
            let mut end = State::default();
            let whole = mixer.mix(&x.whole(), &bound, Some(&mut end), Branches::Both).unwrap();
            let stateless = mixer.mix(&x.whole(), &bound, None, Branches::Both).unwrap();
            close(&format!("{what}, without a state"), stateless.value(), whole.value());
            for cut in [1, 15, 17, 63, 64, 65, 89] {
                let mut state = State::default();
                let first = mixer.mix(&x.part(0, cut), &bound, Some(&mut state), Branches::Both).unwrap();
                let second = mixer.mix(&x.part(cut, tokens - cut), &bound, Some(&mut state), Branches::Both).unwrap();
                let joined = Tensor::cat(&[first.value(), second.value()], 1).unwrap();
                close(&format!("{what}, cut at {cut}"), &joined, whole.value());
            }
            let mut state = State::default();
            let step = |i: usize, state: &mut State| mixer.step(&x.part(i, 1), &bound, state).unwrap();
            let steps: Vec<Tensor> = (0..tokens).map(|i| step(i, &mut state)).collect();
            close(&format!("{what}, token by token"), &Tensor::cat(&steps, 1).unwrap(), whole.value());
            assert_eq!(state.past, end.past, "{what}");
            assert_eq!(state.tensors.keys().collect::<Vec<_>>(), end.tensors.keys().collect::<Vec<_>>(), "{what}");
            for (name, tensor) in &state.tensors {
                close(&format!("{what}, state {name}"), tensor, &end.tensors[name]);
            }
            assert_eq!(state.bytes(), batch * mixer.state_bytes(tokens), "{what}: state_bytes tells the truth");
            // A fork goes its own way and leaves the original alone.
            let before = state.fork().unwrap();
            let mut fork = state.fork().unwrap();
            step(0, &mut fork);
            for (name, tensor) in &state.tensors {
                assert_eq!(largest(tensor, &before.tensors[name]), 0.0, "{what}: fork changed {name}");
            }
        }
    }
}

#[test]
fn nothing_looks_ahead() {
    let (site, tokens, seen) = (site(4, 2, 8, 1), 100, 70);
    for (m, window) in all() {
        let mixer = build(m, site, window);
        let bound = bound(&*mixer);
        let mut x = Layer::new(site, 1, tokens);
        let before = mixer.mix(&x.whole(), &bound, None, Branches::Both).unwrap();
        for (seed, part) in [&mut x.input, &mut x.q, &mut x.k, &mut x.v].into_iter().enumerate() {
            let mut dims = part.dims().to_vec();
            dims[1] = tokens - seen;
            let other = random(50 + seed as u64, &dims, 2.0);
            *part = Tensor::cat(&[part.narrow(1, 0, seen).unwrap(), other], 1).unwrap();
        }
        let after = mixer.mix(&x.whole(), &bound, None, Branches::Both).unwrap();
        let first = |y: &Var| y.value().narrow(1, 0, seen).unwrap();
        // Gates that differ later may split a chunk elsewhere: rounding, not looking.
        close(&format!("{} beside {window:?}", m.name), &first(&after), &first(&before));
        assert!(largest(before.value(), after.value()) > 1e-3, "{}: later tokens do not matter", m.name);
    }
}

/// A row with padding and several documents is its documents one by one.
#[test]
fn documents_and_padding() {
    let (site, tokens) = (site(4, 2, 8, 1), 90);
    let rows = vec![vec![3..40, 40..41, 45..90], vec![0..17, 17..88]];
    for (m, window) in all() {
        let (mixer, what) = (build(m, site, window), format!("{} beside {window:?}", m.name));
        let bound = bound(&*mixer);
        let x = Layer::new(site, 2, tokens);
        let documents = Documents::new(tokens, rows.clone()).unwrap();
        let packed = mixer.mix(&x.whole().in_documents(documents), &bound, None, Branches::Both).unwrap();
        for (row, documents) in rows.iter().enumerate() {
            for document in documents {
                let cut = |x: &Tensor| {
                    let x = x.narrow(0, row, 1).unwrap().narrow(1, document.start, document.len()).unwrap();
                    Var::from(x.contiguous().unwrap())
                };
                let heads = Heads::new(cut(&x.q), cut(&x.k), cut(&x.v)).unwrap();
                let angles = x.rotary.angles(document.start, document.len());
                let heads = heads.of_layer(cut(&x.input), Some(angles));
                let alone = mixer.mix(&heads, &bound, None, Branches::Both).unwrap();
                let inside = cut(packed.value());
                close(&format!("{what}, row {row}, document {document:?}"), inside.value(), alone.value());
            }
        }
        let padding = packed.value().narrow(0, 0, 1).unwrap().narrow(1, 0, 3).unwrap();
        assert_eq!(largest(&padding, &padding.zeros_like().unwrap()), 0.0, "{what}: padding reads something");
    }
}

/// A batch of texts of different lengths, padded on the left, goes on token by token as each text alone.
#[test]
fn left_padded_batches_are_continued() {
    let (site, tokens, prompt) = (site(4, 2, 8, 1), 60, 40);
    for (m, window) in all() {
        let (mixer, what) = (build(m, site, window), format!("{} beside {window:?}", m.name));
        let bound = bound(&*mixer);
        let x = Layer::new(site, 2, tokens);
        let starts = [0, 29];
        let documents = Documents::new(prompt, starts.map(|s| std::iter::once(s..prompt).collect()).to_vec()).unwrap();
        let mut state = State::default();
        let first = x.part(0, prompt).in_documents(documents);
        let mut outputs = vec![mixer.mix(&first, &bound, Some(&mut state), Branches::Both).unwrap().value().clone()];
        outputs.extend((prompt..tokens).map(|i| mixer.step(&x.part(i, 1), &bound, &mut state).unwrap()));
        let batch = Tensor::cat(&outputs, 1).unwrap();
        for (row, start) in starts.into_iter().enumerate() {
            let cut = |x: &Tensor| {
                let x = x.narrow(0, row, 1).unwrap().narrow(1, start, tokens - start).unwrap();
                Var::from(x.contiguous().unwrap())
            };
            let heads = Heads::new(cut(&x.q), cut(&x.k), cut(&x.v)).unwrap();
            let heads = heads.of_layer(cut(&x.input), Some(x.rotary.angles(start, tokens - start)));
            let alone = mixer.mix(&heads, &bound, None, Branches::Both).unwrap();
            close(&format!("{what}, row {row}"), cut(&batch).value(), alone.value());
        }
    }
}

/// Gradients of every input and tensor against differences of the loss along random directions, and none of them
/// zero at the initial values but where that is the design.
#[test]
fn gradients_are_those_of_differences() {
    let (batch, tokens) = (2, 37);
    let site = site(4, 2, 8, 1);
    for (m, window) in all().filter(|(_, w)| w.is_none_or(|w| w.size == 16)) {
        let (mixer, what) = (build(m, site, window), format!("{} beside {window:?}", m.name));
        let x = Layer::new(site, batch, tokens);
        let documents = Documents::new(tokens, vec![vec![2..20, 20..37], vec![0..37]]).unwrap();
        let mut named: Vec<(String, Tensor)> = tensors(&*mixer);
        for (name, part) in [("input", &x.input), ("q", &x.q), ("k", &x.k), ("v", &x.v)] {
            named.push((format!("the layer's {name}"), part.clone()));
        }
        let up = random(99, &[batch, tokens, 4, 8], 1.0);
        let output = |named: &[(String, Tensor)], tape: Option<&Tape>| -> (Var, Vec<Var>) {
            let var = |t: &Tensor| tape.map_or_else(|| t.clone().into(), |tape| tape.leaf(t.clone()));
            let vars: Vec<Var> = named.iter().map(|(_, t)| var(t)).collect();
            let own = named.len() - 4;
            let bound = Bound(named.iter().zip(&vars).take(own).map(|((n, _), v)| (n.clone(), v.clone())).collect());
            let [input, q, k, v] = [0, 1, 2, 3].map(|i| vars[own + i].clone());
            let heads = Heads::new(q, k, v).unwrap().of_layer(input, Some(x.rotary.angles(0, tokens)));
            (mixer.mix(&heads.in_documents(Arc::clone(&documents)), &bound, None, Branches::Both).unwrap(), vars)
        };
        let loss = |named: &[(String, Tensor)]| -> f64 {
            let (o, _) = output(named, None);
            let o = o.value().to_dtype(candle_core::DType::F64).unwrap();
            let up = up.to_dtype(candle_core::DType::F64).unwrap();
            (o * up).unwrap().sum_all().unwrap().to_scalar().unwrap()
        };
        let tape = Tape::new();
        let (o, vars) = output(&named, Some(&tape));
        let mut gradients = tape.backward(vec![(&o, up.clone())]).unwrap();
        for i in 0..named.len() {
            let (name, value) = named[i].clone();
            // A mixer need not use everything that a layer offers.
            let Some(gradient) = gradients.take(&vars[i]) else {
                assert!(name.starts_with("the layer's"), "{what}: no gradient of {name}");
                continue;
            };
            let direction = random(7, value.dims(), 1.0);
            let inner = |a: &Tensor, b: &Tensor| -> f64 {
                let product =
                    a.to_dtype(candle_core::DType::F64).unwrap() * b.to_dtype(candle_core::DType::F64).unwrap();
                product.unwrap().sum_all().unwrap().to_scalar().unwrap()
            };
            let along = inner(&gradient, &direction);
            let size = inner(&gradient, &gradient).sqrt() * (direction.elem_count() as f64).sqrt();
            assert!(size > 1e-6, "{what}: the gradient of {name} is zero");
            let h = 1e-3;
            let mut at = |sign: f64| {
                named[i].1 = (&value + (&direction * (sign * h)).unwrap()).unwrap();
                loss(&named)
            };
            let slope = (8.0 * (at(1.0) - at(-1.0)) - (at(2.0) - at(-2.0))) / (12.0 * h);
            named[i].1 = value;
            assert!((slope - along).abs() < 5e-3 * size.max(1.0), "{what}: {name}: {along} instead of {slope}");
        }
    }
}
