//! The etcd-client crate: the Rust programs' way to a member.

use etcd_client::{
    Client, Compare, CompareOp, EventType, GetOptions, PutOptions, Txn, TxnOp, WatchOptions,
};

use crate::support::Member;

async fn client(member: &Member) -> Client {
    Client::connect([member.client.to_string()], None)
        .await
        .unwrap()
}

#[tokio::test]
async fn keys_leases_watches_and_transactions_work() {
    let member = Member::alone();
    let mut client = client(&member).await;
    let lease = client.lease_grant(600, None).await.unwrap().id();
    let on_lease = PutOptions::new().with_lease(lease);
    let put = client.put("a/1", "one", Some(on_lease)).await.unwrap();
    let revision = put.header().unwrap().revision();

    let options = WatchOptions::new()
        .with_prefix()
        .with_start_revision(revision);
    let mut watch = client.watch("a/", Some(options)).await.unwrap();
    let mut seen = Vec::new();
    let txn = Txn::new()
        .when([Compare::value("a/1", CompareOp::Equal, "one")])
        .and_then([TxnOp::put("a/2", "two", None), TxnOp::get("a/1", None)]);
    assert!(client.txn(txn).await.unwrap().succeeded());
    client.lease_revoke(lease).await.unwrap();
    while seen.len() < 3 {
        let answer = watch.message().await.unwrap().unwrap();
        for event in answer.events() {
            let key = event.kv().unwrap().key_str().unwrap().to_owned();
            seen.push((event.event_type() == EventType::Put, key));
        }
    }
    let seen: Vec<(bool, &str)> = seen.iter().map(|(put, key)| (*put, key.as_str())).collect();
    assert_eq!(seen, [(true, "a/1"), (true, "a/2"), (false, "a/1")]);

    let all = client
        .get("a/", Some(GetOptions::new().with_prefix()))
        .await
        .unwrap();
    assert_eq!(all.count(), 1);
    let (mut keeper, mut kept) = {
        let lease = client.lease_grant(60, None).await.unwrap().id();
        client.lease_keep_alive(lease).await.unwrap()
    };
    keeper.keep_alive().await.unwrap();
    assert_eq!(kept.message().await.unwrap().unwrap().ttl(), 60);
}

#[tokio::test]
async fn locks_and_elections_have_an_owner() {
    let member = Member::alone();
    let mut client = client(&member).await;
    let key = client.lock("l", None).await.unwrap().key().to_vec();
    assert!(key.starts_with(b"l/"));
    client.unlock(key).await.unwrap();

    let lease = client.lease_grant(60, None).await.unwrap().id();
    let campaign = client.campaign("e", "me", lease).await.unwrap();
    let leads = client.leader("e").await.unwrap();
    let said = leads.kv().unwrap();
    assert_eq!(said.value_str().unwrap(), "me");
    assert_eq!(said.key(), campaign.leader().unwrap().key());
}
