//! A client: reads, writes, flushes, discards and zeroes its stripes of any volume.

use super::*;

/// Sectors of its stripes of a volume, in runs of a stripe.
fn stripe(rng: &mut Rng, sectors: usize, client: u64, seed: u64) -> Option<(usize, usize)> {
    let len = if seed % 5 == 4 { LONG_STRIPE } else { STRIPE };
    let stripes = sectors.div_ceil(len);
    let mine = (stripes + CLIENTS as usize - 1 - client as usize) / CLIENTS as usize;
    if mine == 0 {
        return None;
    }
    let stripe = rng.below(mine as u64) as usize * CLIENTS as usize + client as usize;
    let first = stripe * len;
    Some((first, len.min(sectors - first)))
}

/// A volume to work on, which stays attached until the work is done.
fn take(world: &World, rng: &mut Rng) -> Option<(VolumeId, Rc<Attachment>, usize)> {
    let mut model = world.model.borrow_mut();
    let count = model.volumes.len() as u64;
    let known = model.volumes.get_mut(rng.below(count.max(1)) as usize)?;
    let device = known.device.clone().filter(|_| !known.held)?;
    known.busy += 1;
    Some((known.id, device, known.image.len()))
}

fn give_back(world: &World, id: VolumeId) {
    world.with(id, |known| known.busy -= 1);
    world.model.borrow_mut().done += 1;
    world.quiet.notify_all();
}

pub(super) async fn run(world: Shared, mut rng: Rng, client: u64) {
    for _ in 0..10_000 {
        let Some((id, device, sectors)) = take(&world, &mut rng) else {
            engine::sleep(Duration::from_micros(300)).await;
            continue;
        };
        match rng.below(12) {
            0 | 1 => flush(&world, id, &device).await,
            2 | 3 => {
                look(
                    &world,
                    id,
                    &device,
                    stripe(&mut rng, sectors, client, world.seed),
                )
                .await;
            }
            choice => {
                if let Some((first, count)) = stripe(&mut rng, sectors, client, world.seed) {
                    let skip = rng.below(count as u64) as usize;
                    let left = count - skip;
                    let count = 1 + rng.below(left as u64) as usize;
                    change(&world, id, &device, first + skip, count, choice).await;
                }
            }
        }
        give_back(&world, id);
    }
}

/// The source of an image fails now and then; nothing else does.
async fn wait_for_source(error: &BlockError) {
    let why = why(error);
    assert!(why.contains("nobody is there"), "{why}");
    engine::sleep(Duration::from_micros(100)).await;
}

async fn flush(world: &World, id: VolumeId, device: &Attachment) {
    let began = world.tick();
    device.flush().await.unwrap();
    world.with(id, |known| known.image.flushed(began));
}

async fn look(world: &World, id: VolumeId, device: &Attachment, what: Option<(usize, usize)>) {
    let Some((first, count)) = what else { return };
    let bytes = loop {
        match read(device, (first * SECTOR) as u64, count * SECTOR).await {
            Ok(bytes) => break bytes,
            Err(error) => wait_for_source(&error).await,
        }
    };
    let seen = stamps(&bytes);
    world.with(id, |known| {
        let wanted: Vec<_> = (first..first + count).map(|s| known.image.now(s)).collect();
        assert_eq!(
            seen, wanted,
            "seed {}: {} from sector {first}",
            world.seed, known.name
        );
    });
}

/// Writes, discards or zeroes a range.
async fn change(
    world: &World,
    id: VolumeId,
    device: &Attachment,
    first: usize,
    count: usize,
    choice: u64,
) {
    let began = world.tick();
    let (offset, len) = ((first * SECTOR) as u64, (count * SECTOR) as u64);
    // Only whole blocks are discarded.
    let (from, to) = match choice {
        4 => (first.next_multiple_of(8), (first + count) / 8 * 8),
        _ => (first, first + count),
    };
    let count = to.saturating_sub(from);
    let stamp = if choice <= 5 { 0 } else { began };
    world.with(id, |known| known.image.begin(from, count, stamp, began));
    let durable = choice == 6;
    loop {
        let done = match choice {
            4 => device.discard(offset, len).await,
            5 => device.write_zeroes(offset, len, true, false).await,
            _ => {
                let skew = if choice == 7 { 72 } else { 0 };
                let list = list_of(&sectors(stamp, count), skew);
                device.write(offset, list, durable).await
            }
        };
        match done {
            Ok(()) => break,
            Err(error) => wait_for_source(&error).await,
        }
    }
    let ended = world.tick();
    world.with(id, |known| {
        known.image.end(from, count, ended);
        if durable {
            known.image.flushed_range(from, count);
        }
    });
}
