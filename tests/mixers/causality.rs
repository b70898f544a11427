//! Nothing looks ahead, nothing crosses documents, padding counts for nothing.

use super::common::{largest, random};
use super::{Case, Layer, all, close, layer_dims};
use candle_core::Tensor;
use subquad::mixer::{LayerInputs, State};
use subquad::ops::{Documents, Var};

#[test]
fn nothing_looks_ahead() {
    let (layer_dims, tokens, seen) = (layer_dims(4, 2, 8, 1), 100, 70);
    for (m, window) in all() {
        let case = Case::new(m, layer_dims, window);
        let mut x = Layer::new(layer_dims, 1, tokens);
        let before = case.mix(&x.whole(), None);
        for (seed, part) in [&mut x.input, &mut x.q, &mut x.k, &mut x.v].into_iter().enumerate() {
            let mut dims = part.dims().to_vec();
            dims[1] = tokens - seen;
            let other = random(50 + seed as u64, &dims, 2.0);
            *part = Tensor::cat(&[part.narrow(1, 0, seen).unwrap(), other], 1).unwrap();
        }
        let after = case.mix(&x.whole(), None);
        let first = |y: &Tensor| y.narrow(1, 0, seen).unwrap();
        // Gates that differ later may split a chunk elsewhere: rounding, not looking.
        close(&case.what, &first(&after), &first(&before));
        assert!(largest(&before, &after) > 1e-3, "{}: later tokens do not matter", case.what);
    }
}

/// A row with padding and several documents is its documents one by one.
#[test]
fn documents_and_padding() {
    let (layer_dims, tokens) = (layer_dims(4, 2, 8, 1), 90);
    let rows = vec![vec![3..40, 40..41, 45..90], vec![0..17, 17..88]];
    for (m, window) in all() {
        let case = Case::new(m, layer_dims, window);
        let x = Layer::new(layer_dims, 2, tokens);
        let documents = Documents::new(tokens, rows.clone()).unwrap();
        let packed = case.mix(&x.whole().in_documents(documents), None);
        for (row, documents) in rows.iter().enumerate() {
            for document in documents {
                let cut = |x: &Tensor| {
                    let x = x.narrow(0, row, 1).unwrap().narrow(1, document.start, document.len()).unwrap();
                    Var::from(x.contiguous().unwrap())
                };
                let heads = LayerInputs::new(cut(&x.q), cut(&x.k), cut(&x.v)).unwrap();
                let angles = x.rotary.angles(document.start, document.len());
                let heads = heads.of_layer(cut(&x.input), Some(angles));
                let alone = case.mix(&heads, None);
                let inside = cut(&packed);
                close(&format!("{}, row {row}, document {document:?}", case.what), inside.value(), &alone);
            }
        }
        let padding = packed.narrow(0, 0, 1).unwrap().narrow(1, 0, 3).unwrap();
        assert_eq!(largest(&padding, &padding.zeros_like().unwrap()), 0.0, "{}: padding reads something", case.what);
    }
}

/// A batch of texts of different lengths, padded on the left, goes on token by token as each text alone.
#[test]
fn left_padded_batches_are_continued() {
    let (layer_dims, tokens, prompt) = (layer_dims(4, 2, 8, 1), 60, 40);
    for (m, window) in all() {
        let case = Case::new(m, layer_dims, window);
        let x = Layer::new(layer_dims, 2, tokens);
        let starts = [0, 29];
        let documents = Documents::new(prompt, starts.map(|s| std::iter::once(s..prompt).collect()).to_vec()).unwrap();
        let mut state = State::default();
        let first = x.part(0, prompt).in_documents(documents);
        let mut outputs = vec![case.mix(&first, Some(&mut state))];
        let params = case.params();
        outputs.extend((prompt..tokens).map(|i| case.mixer.step(&x.part(i, 1), &params, &mut state).unwrap()));
        let batch = Tensor::cat(&outputs, 1).unwrap();
        for (row, start) in starts.into_iter().enumerate() {
            let cut = |x: &Tensor| {
                let x = x.narrow(0, row, 1).unwrap().narrow(1, start, tokens - start).unwrap();
                Var::from(x.contiguous().unwrap())
            };
            let heads = LayerInputs::new(cut(&x.q), cut(&x.k), cut(&x.v)).unwrap();
            let heads = heads.of_layer(cut(&x.input), Some(x.rotary.angles(start, tokens - start)));
            let alone = case.mix(&heads, None);
            close(&format!("{}, row {row}", case.what), cut(&batch).value(), &alone);
        }
    }
}
