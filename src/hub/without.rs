//! The Hub in a build without it.

use std::path::{Path, PathBuf};

use super::{PushPlan, Weight};
use crate::checkpoint::{Checkpoint, HubId};
use crate::progress::Progress;
use crate::{Error, Result};

fn without<T>(id: &HubId) -> Result<T> {
    let near = id.near_miss().map(|near| format!("did you mean `{near}`? Otherwise "));
    Err(Error::file(
        &id.path,
        "there is no such file or folder, and this build of subquad has no access to the Hub",
        format!("{}check the path, or build subquad with the feature `hub`", near.unwrap_or_default()),
    ))
}

pub(super) fn model(id: &HubId, _: &mut dyn Progress) -> Result<PathBuf> {
    without(id)
}

pub(super) fn text(id: &HubId, _: &mut dyn Progress) -> Result<PathBuf> {
    without(id)
}

pub(super) fn open(id: &HubId) -> Result<Checkpoint> {
    without(id)
}

pub(super) fn weigh_model(id: &HubId) -> Result<Weight> {
    without(id)
}

pub(super) fn weigh_text(id: &HubId) -> Result<Weight> {
    without(id)
}

pub(super) fn compare(_: &Path, id: &HubId, _: bool, _: &mut dyn Progress) -> Result<PushPlan> {
    without(id)
}

pub(super) fn push(plan: &PushPlan, _: &str, _: &mut dyn Progress) -> Result<Option<String>> {
    Err(Error::usage(
        format!("{}: this build has no access to the Hub", plan.repository),
        "build with the feature `hub`",
    ))
}
