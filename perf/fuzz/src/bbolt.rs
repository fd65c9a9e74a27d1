//! Database files of bbolt, as snapshots of etcd are.

use std::collections::BTreeMap;

use bbolt_format::{Contents, Error, Plan, Reader};

/// The smallest pages that there are, so that small inputs make trees.
const PAGE_BYTES: usize = 1024;
const NAME: &str = "key";

type Entries = BTreeMap<Vec<u8>, Vec<u8>>;

fn read(file: &[u8]) -> Result<Entries, Error> {
    let mut reader = Reader::open(file.len() as u64, |offset, length| {
        Ok::<_, Error>(file[offset as usize..][..length].to_vec())
    })?;
    let mut entries = Entries::new();
    if let Some(mut cursor) = reader.bucket(NAME)? {
        while let Some((key, value)) = cursor.next_entry()? {
            entries.insert(key, value);
        }
    }
    Ok(entries)
}

fn written(entries: &Entries) -> Option<Vec<u8>> {
    let fill = |contents: &mut Contents<'_, Error>| {
        contents.bucket(NAME)?;
        let mut entries = entries.iter();
        entries.try_for_each(|(key, value)| contents.put(key, value))
    };
    // A reader takes keys that a writer refuses: an empty one, and very long ones.
    let plan = Plan::of(fill).ok()?;
    let mut file = Vec::new();
    let take = |page: &[u8]| {
        file.extend_from_slice(page);
        Ok(())
    };
    plan.write(fill, take).expect("it was planned");
    Some(file)
}

/// A file of the input's pages behind a meta page whose checksum is right.
fn with_meta(root: u8, pages: &[u8]) -> Vec<u8> {
    let mut file = vec![0; 2 * PAGE_BYTES];
    file.extend_from_slice(pages);
    file.resize(file.len().next_multiple_of(PAGE_BYTES), 0);
    let count = (file.len() / PAGE_BYTES) as u64;
    let meta = &mut file[16..80];
    meta[..4].copy_from_slice(&0xED0C_DAED_u32.to_le_bytes());
    meta[4..8].copy_from_slice(&2_u32.to_le_bytes());
    meta[8..12].copy_from_slice(&(PAGE_BYTES as u32).to_le_bytes());
    meta[16..24].copy_from_slice(&u64::from(root).to_le_bytes());
    meta[40..48].copy_from_slice(&count.to_le_bytes());
    let sum = meta[..56]
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |sum: u64, byte| {
            (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
    meta[56..].copy_from_slice(&sum.to_le_bytes());
    file
}

/// The first byte chooses the root's page, or that the rest is a whole file as it stands.
pub fn file(input: &[u8]) {
    let [root, rest @ ..] = input else { return };
    let file = match root {
        0 => rest.to_vec(),
        root => with_meta(*root, rest),
    };
    let Ok(entries) = read(&file) else { return };
    if let Some(again) = written(&entries) {
        assert_eq!(read(&again).as_ref(), Ok(&entries));
    }
}
