//! Transactions: their operations and answers.

use etcd_client::{KeyValue, PutOptions, Txn, TxnOp, TxnOpResponse, TxnResponse};

use super::Store;
use super::error::CallError;
use super::records::MAX_MESSAGE;

impl Store {
    /// Runs a transaction. `what` names its purpose in errors.
    pub(super) async fn txn(&self, what: &'static str, txn: Txn) -> Result<TxnResponse, CallError> {
        let run = |client: etcd_client::Client| {
            let mut client = client.kv_client().max_decoding_message_size(MAX_MESSAGE);
            let txn = txn.clone();
            async move { client.txn(txn).await }
        };
        Ok(self.call(what, run).await?.1)
    }
}

/// Puts a value on an etcd lease; on lease 0 it never expires.
pub(super) fn put(name: &str, value: &str, id: i64) -> TxnOp {
    let options = (id != 0).then(|| PutOptions::new().with_lease(id));
    TxnOp::put(name, value, options)
}

/// The records that the reads of a transaction returned.
pub(super) fn records(done: &TxnResponse) -> Vec<KeyValue> {
    let found = done.op_responses().into_iter().map(|response| match response {
        TxnOpResponse::Get(mut found) => found.take_kvs(),
        _ => Vec::new(),
    });
    found.flatten().collect()
}
