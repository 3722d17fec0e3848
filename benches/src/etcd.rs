//! Many writes to etcd at once.

use etcd_client::{Client, Error, Txn, TxnOp};
use flannel_lab::bed::Bed;
use flannel_lab::store::EtcdStore;

use crate::{Fallible, leases};

/// What etcd takes in one transaction unless told otherwise.
const TXN: usize = 128;

/// Talks to the server of a bed, from inside the underlay.
pub fn talk<T: Send>(
    bed: &Bed<EtcdStore>,
    talk: impl AsyncFnOnce(&mut Client) -> Result<T, Error> + Send,
) -> Fallible<T> {
    let endpoint = bed.store.etcd().endpoint().to_owned();
    let talk = || -> Result<T, String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| error.to_string())?;
        let talk = async {
            let mut client = Client::connect([endpoint], None).await?;
            talk(&mut client).await
        };
        runtime.block_on(talk).map_err(|error: Error| error.to_string())
    };
    Ok(bed.cluster.fabric().enter(talk)??)
}

/// Does all of this in as few transactions as possible.
pub async fn transact(client: &mut Client, ops: &[TxnOp]) -> Result<(), Error> {
    for part in ops.chunks(TXN) {
        client.txn(Txn::new().and_then(part)).await?;
    }
    Ok(())
}

/// Puts leases.
pub async fn put(client: &mut Client, backend: &str, leases: std::ops::Range<u32>) -> Result<(), Error> {
    put_values(client, leases, |n| leases::value(backend, n)).await
}

/// Writes leases with these values.
pub async fn put_values(
    client: &mut Client,
    leases: std::ops::Range<u32>,
    value: impl Fn(u32) -> String,
) -> Result<(), Error> {
    let put = |n| TxnOp::put(key(n), value(n), None);
    transact(client, &leases.map(put).collect::<Vec<_>>()).await
}

/// Deletes leases.
pub async fn delete(client: &mut Client, leases: std::ops::Range<u32>) -> Result<(), Error> {
    transact(client, &leases.map(|n| TxnOp::delete(key(n), None)).collect::<Vec<_>>()).await
}

fn key(n: u32) -> String {
    EtcdStore::key(&leases::key(n))
}
