//! Fills a volume from its image while somebody waits.

use std::time::Duration;

use anyhow::Result;
use coronafs_api::v1;
use indicatif::ProgressBar;

use super::image::bar;
use super::{Client, described};
use crate::failure::{Exit, Failure};
use crate::output::{Format, show};

/// Between two looks at how far it is.
const LOOK: Duration = Duration::from_millis(250);
/// Looks at an image that cannot be read, and of which nothing more has come, before that is told.
const STUCK_LOOKS: u32 = 20;

/// Begins, and waits until the volume needs its image no more.
pub async fn run(client: &mut Client, owner: String, name: String, format: Format) -> Result<()> {
    let request = v1::FlattenVolumeRequest {
        name: name.clone(),
        owner: owner.clone(),
    };
    let begun = client.flatten_volume(request).await;
    let mut volume = begun.map_err(Failure::from)?.into_inner();
    let bar = bar(format, 0);
    let mut stuck = 0;
    let mut before = 0;
    let outcome = loop {
        let Some(image) = volume.image.as_ref().filter(|one| one.phase != "filled") else {
            break Ok(());
        };
        shown(&bar, image);
        stuck = if image.error.is_empty() || image.filled_bytes > before {
            0
        } else {
            stuck + 1
        };
        if image.phase == "failed" || stuck == STUCK_LOOKS {
            let what = format!("volume {name} is not filled: {}", image.error);
            let next = if image.phase == "failed" {
                "delete it, and make it anew from the right image"
            } else {
                "see that the object is there as it was; the volume goes on by itself then"
            };
            break Err(Failure::new(Exit::Failed, "not-filled", what).next(next));
        }
        before = image.filled_bytes;
        tokio::time::sleep(LOOK).await;
        let request = v1::GetVolumeRequest {
            name: name.clone(),
            owner: owner.clone(),
        };
        volume = match client.get_volume(request).await {
            Ok(found) => found.into_inner(),
            Err(error) => break Err(error.into()),
        };
    };
    bar.finish_and_clear();
    outcome?;
    show(format, &volume, described)
}

fn shown(bar: &ProgressBar, image: &v1::VolumeImage) {
    bar.set_message("filling");
    bar.set_length(image.total_bytes);
    bar.set_position(image.filled_bytes);
}
