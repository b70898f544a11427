//! Students for the cases: random ones, of whose tensors each says something, and whose logits are not rounding's.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use rand::{RngExt, SeedableRng};
use subquad::arch::Spec;
use subquad::checkpoint::Checkpoint;
use subquad::model::{Conversion, Model, Session, Student, View};
use subquad::progress::Silent;
use subquad::stage::{Match, calibrate};

use super::{Done, Teacher};

/// Most that rounding may move the logits. Where a norm or a normaliser meets nearly nothing, as those of heads of 8
/// channels do in some texts, rounding grows, and it would be rounding that is compared.
const ROUNDING: f32 = 5e-5;
/// Students and texts that are drawn until one is so.
const DRAWS: u64 = 24;
/// Least that logits change where a tensor is zero, so that a mistake in it is seen: twice what check.py lets pass.
const SEEN: f32 = 2e-4;

/// A student with two of the teacher's texts.
pub fn student(conversion: Conversion, teacher: &Teacher) -> Done<(Student, Vec<u32>)> {
    let (model, tokens) = (&teacher.model, teacher.tokens());
    let mut least = f32::INFINITY;
    for draw in 0..DRAWS {
        let mut student = Student::new(conversion.clone(), &model.spec, 0)?;
        // Away from initial values, at which gates say little and maps are the identity: rows change by as much however
        // wide they are, and biases further, since a norm or a softmax takes away most of what they shift.
        for (i, tensor) in student.tensors.values_mut().enumerate() {
            let most = match tensor.dims() {
                [.., _, columns] => 0.3 / (*columns as f32).sqrt(),
                _ => 1.0,
            };
            *tensor = (&*tensor + random(1000 * draw + i as u64, tensor.dims(), most)?)?;
        }
        // Of the size that a conversion gives a layer.
        calibrate(model, &mut student, &teacher.text[..tokens], 1, Match::Error, &mut Silent)?;
        // That has set some tensors to one number per head, or to zero; what must be positive stays so.
        for (i, tensor) in student.tensors.values_mut().enumerate() {
            let more = (random(i as u64, tensor.dims(), 0.1)?.abs()? * (tensor.abs()? + 0.1)?)?;
            *tensor = (&*tensor + more)?;
        }
        let ids = &teacher.text[draw as usize % 4 * tokens..][..2 * tokens];
        let moved = rounding(teacher, &student, ids)?;
        if moved <= ROUNDING {
            all_seen(model, &mut student, &ids[..tokens])?;
            return Ok((student, ids.to_vec()));
        }
        least = least.min(moved);
    }
    Err(format!("of {DRAWS} students, rounding moves the logits by at least {least:.1e}").into())
}

/// How far the logits of texts move where they are read token by token, and where every weight of the teacher moves by
/// its last bit or not.
fn rounding(teacher: &Teacher, student: &Student, ids: &[u32]) -> Done<f32> {
    let view = View::student(&teacher.model, student);
    let (whole, tokens) = (view.logits(ids, 2)?, ids.len() / 2);
    let mut most = 0f32;
    for model in &teacher.shaken {
        most = most.max(distance(&View::student(model, student).logits(ids, 2)?, &whole)?);
    }
    for (row, ids) in ids.chunks(tokens).enumerate() {
        let mut session = Session::new(view);
        for (t, id) in ids.iter().enumerate() {
            most = most.max(distance(&session.feed(&[*id])?, &whole.get(row)?.get(t)?)?);
        }
    }
    Ok(most)
}

/// Sets the tensors of one name in all layers to zero, name by name: the logits must be others.
fn all_seen(model: &Model, student: &mut Student, text: &[u32]) -> Done<()> {
    let logits = View::student(model, student).logits(text, 1)?;
    let mut kinds = BTreeMap::<String, Vec<String>>::new();
    for name in student.tensors.keys() {
        kinds.entry(name.rsplit('.').next().unwrap_or(name).into()).or_default().push(name.clone());
    }
    for (kind, names) in kinds {
        let before = student.tensors.clone();
        for name in names {
            let zero = before[&name].zeros_like()?;
            student.tensors.insert(name, zero);
        }
        let change = distance(&View::student(model, student).logits(text, 1)?, &logits)?;
        // Not a number is a change too.
        if change < SEEN {
            return Err(format!("logits change by {change:.1e} where `{kind}` is zero").into());
        }
        student.tensors = before;
    }
    Ok(())
}

fn distance(a: &Tensor, b: &Tensor) -> Done<f32> {
    Ok((a - b)?.abs()?.flatten_all()?.max(0)?.to_scalar()?)
}

/// The model with weights whose last bit may be another.
pub fn shaken(checkpoint: &Checkpoint, spec: &Spec, seed: u64) -> Done<Model> {
    Ok(Model::of(spec, |stored| {
        let weight = checkpoint.tensor(&stored.name, DType::F32)?;
        let factor = random(seed, weight.dims(), f32::EPSILON)?;
        Ok((&weight * (factor + 1.0)?)?)
    })?)
}

/// Uniform in +-`scale`.
pub fn random(seed: u64, shape: &[usize], scale: f32) -> subquad::Result<Tensor> {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let data: Vec<f32> = (0..shape.iter().product()).map(|_| (rng.random::<f32>() * 2.0 - 1.0) * scale).collect();
    Ok(Tensor::from_vec(data, shape, &Device::Cpu)?)
}
