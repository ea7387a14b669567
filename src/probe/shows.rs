//! What `/api/show` said, once for each content.
//!
//! Clients give a `show` three seconds and silently lose a model's tools when it is late, so
//! it is read ahead, when a list first names a digest. Answers of other machines are kept
//! without the places of their files.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use parking_lot::Mutex;
use serde_json::json;

use super::ask::{Asker, Target};
use super::list;
use crate::api::show::{Shown, blank_blob_path};
use crate::directory::ModelListing;
use crate::types::{Digest, Moment, NodeId};

/// How many are asked for at once.
const AT_ONCE: usize = 4;
/// Most answers kept.
const MOST: usize = 4096;
/// Longest answer kept for clients; of a longer one only what it says is kept.
const MOST_BYTES: usize = 1 << 20;

/// All answers so far.
#[derive(Debug, Default)]
pub(super) struct Shows {
    /// By whose it is (this machine's hold its paths) and by digest.
    known: Mutex<HashMap<(bool, Digest), Arc<Show>>>,
    /// When a node was last asked for a digest in vain.
    tried: Mutex<HashMap<(NodeId, Digest), Moment>>,
}

#[derive(Debug)]
struct Show {
    shown: Shown,
    body: Option<Arc<Bytes>>,
}

impl Shows {
    /// Adds what is known to a list.
    pub(super) fn fill(&self, node: &NodeId, models: &mut [ModelListing]) {
        let own = *node == NodeId::This;
        let known = self.known.lock();
        for model in models {
            let Some(digest) = &model.digest else { continue };
            let Some(show) = known.get(&(own, digest.clone())) else { continue };
            model.show.clone_from(&show.body);
            list::learn(model, &show.shown);
        }
    }

    /// Asks for what a list names and nobody has asked for yet. True if something was learnt.
    pub(super) async fn fetch(&self, ask: &Asker, to: &Target, models: &[ModelListing]) -> bool {
        let wanted = self.wanted(ask, &to.node, models);
        let answers = futures_util::stream::iter(wanted).map(|(digest, name)| async move {
            let body = json!({"model": &*name}).to_string();
            let answer = ask.post(to, "/api/show", body.into()).await.ok();
            (digest, answer.filter(super::ask::Answer::is_ok))
        });
        let mut answers = answers.buffer_unordered(AT_ONCE);
        let mut learnt = false;
        while let Some((digest, answer)) = answers.next().await {
            let shown = answer.and_then(|a| Some((Shown::read(&a.body)?, a.body)));
            match shown {
                Some((shown, body)) => {
                    self.keep(&to.node, digest, shown, body);
                    learnt = true;
                }
                None => {
                    self.tried.lock().insert((to.node.clone(), digest), ask.clock.now());
                }
            }
        }
        learnt
    }

    fn wanted(
        &self,
        ask: &Asker,
        node: &NodeId,
        models: &[ModelListing],
    ) -> HashMap<Digest, Arc<str>> {
        let own = *node == NodeId::This;
        let now = ask.clock.now();
        let again = ask.timing.probe_backoff * 3;
        let (known, tried) = (self.known.lock(), self.tried.lock());
        let mut wanted = HashMap::new();
        // A stub's show would be asked of its host, outside the mesh.
        for model in models.iter().filter(|m| !m.remote) {
            let Some(digest) = &model.digest else { continue };
            let tried = tried.get(&(node.clone(), digest.clone()));
            let lately = tried.is_some_and(|at| now.since(*at) < again);
            if !lately && !known.contains_key(&(own, digest.clone())) {
                wanted.insert(digest.clone(), model.name.clone());
            }
        }
        wanted
    }

    fn keep(&self, node: &NodeId, digest: Digest, shown: Shown, body: Bytes) {
        let own = *node == NodeId::This;
        let body = if own { body } else { blank_blob_path(&body) };
        let body = (body.len() <= MOST_BYTES).then(|| Arc::new(body));
        let mut known = self.known.lock();
        if known.len() >= MOST {
            known.clear();
            self.tried.lock().clear();
        }
        known.insert((own, digest), Arc::new(Show { shown, body }));
    }
}
