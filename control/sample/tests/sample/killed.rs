//! The process is killed at each boundary between steps, of making a widget and of deleting one; another takes
//! over, and then the files, the records and the ledger say the same.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use control_kit::saga::Record;
use control_kit::store::{Client, ClientConfig, Range, SharedStore, all};
use creditservice::{Ledger, Options, Quota, Taken};
use futures_util::StreamExt as _;
use serde_json::Value;

use crate::running::{BLUE, Place, Service};

/// Steps of making and of deleting a widget.
const MAKING: usize = 3;
const DELETING: usize = 2;

pub fn store(place: &Place) -> SharedStore {
    let config = ClientConfig {
        endpoints: vec![place.store_url.clone()],
        namespace: "sample/".to_owned(),
        tls: None,
    };
    Arc::new(Client::new(config).unwrap())
}

/// Kills the service as soon as an operation has done so many steps; `begin` begins it.
pub async fn kill_after(
    store: &SharedStore,
    service: &mut Service,
    steps: usize,
    begin: impl FnOnce(&Service) -> Value,
) -> String {
    let here = store
        .range(Range::key("saga/open/"))
        .await
        .unwrap()
        .revision;
    let mut changes = store.watch("saga/open/", here).await.unwrap();
    let operation = begin(service)["operation"].as_str().unwrap().to_owned();
    let key = format!("saga/open/{operation}");
    let watching = async {
        while let Some(change) = changes.next().await {
            for event in change
                .unwrap()
                .events
                .iter()
                .filter(|event| event.key == key)
            {
                let Some(entry) = &event.entry else { return };
                let record: Record = serde_json::from_slice(&entry.value).unwrap();
                if record.done.len() >= steps {
                    return;
                }
            }
        }
    };
    tokio::time::timeout(Duration::from_mins(1), watching)
        .await
        .unwrap();
    service.process.kill();
    operation
}

#[tokio::test]
async fn killed_between_any_two_steps_it_ends_what_it_began() {
    let place = Place::new();
    let store = store(&place);
    let mut service = place.service();
    for steps in 0..=MAKING {
        let body = format!(r#"{{"name":"w{steps}","size":{}}}"#, steps + 1);
        let begin = |service: &Service| {
            let made = service.post(BLUE, "/v1/widgets", &body, &[]);
            assert_eq!(made.status, 202, "{made:?}");
            made.body
        };
        let operation = kill_after(&store, &mut service, steps, begin).await;
        service = place.service();
        let ended = service.settled(&operation);
        assert_eq!(ended["state"], "done", "{ended}");
    }
    judge(&place, &store, MAKING + 1).await;
    for steps in 0..=DELETING {
        let path = format!("/v1/widgets/w{steps}");
        let begin = |service: &Service| {
            let gone = service.curl(BLUE, &["-X", "DELETE", &path]);
            assert_eq!(gone.status, 202, "{gone:?}");
            gone.body
        };
        let operation = kill_after(&store, &mut service, steps, begin).await;
        service = place.service();
        let ended = service.settled(&operation);
        assert_eq!(ended["state"], "done", "{ended}");
    }
    judge(&place, &store, MAKING - DELETING).await;
}

/// Files, records and ledger hold the same widgets, so many of them.
async fn judge(place: &Place, store: &SharedStore, count: usize) {
    let entries = all(&**store, Range::prefix("widget/", 100)).await.unwrap();
    let widgets = entries
        .iter()
        .map(|entry| serde_json::from_slice::<Value>(&entry.value).unwrap());
    let widgets: Vec<Value> = widgets.collect();
    assert_eq!(widgets.len(), count, "{widgets:?}");
    let mut files = BTreeSet::new();
    for file in std::fs::read_dir(place.files()).unwrap() {
        let file = file.unwrap();
        files.insert((
            file.file_name().into_string().unwrap(),
            file.metadata().unwrap().len(),
        ));
    }
    let mut expected = BTreeSet::new();
    let mut inventory = Vec::new();
    for widget in &widgets {
        assert_eq!(widget["state"], "ready", "{widget}");
        let (name, size) = (
            widget["name"].as_str().unwrap(),
            widget["size"].as_u64().unwrap(),
        );
        expected.insert((format!("widget.blue.{name}"), size));
        let taken = Taken::by(widget["made_by"].as_str().unwrap());
        inventory.extend(taken.of("blue", "widget-bytes", size).unwrap().in_use());
    }
    assert_eq!(files, expected);
    let ledger = Ledger::open(Arc::clone(store), Options::default())
        .await
        .unwrap();
    let quota = Quota {
        tenant: "blue".parse().unwrap(),
        unit: "widget-bytes".parse().unwrap(),
    };
    let standing = ledger.standing(&quota).await.unwrap().unwrap();
    let sizes: u64 = expected.iter().map(|(_, size)| size).sum();
    assert_eq!(
        (standing.used, standing.reserved),
        (u128::from(sizes), 0),
        "{standing:?}"
    );
    let units = BTreeSet::from([quota.unit.clone()]);
    let drift = ledger.reconcile(&units, &inventory).await.unwrap();
    assert_eq!(drift.units, 0, "{drift:?}");
    let locks = all(&**store, Range::prefix("saga/object/", 100))
        .await
        .unwrap();
    assert!(locks.is_empty(), "{locks:?}");
}
