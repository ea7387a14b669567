//! Lists: what engines say of their models, and what we say of the mesh's.

use serde_json::Value;

use super::{folder, samples};
use crate::api::show::{self, Shown};
use crate::api::union::{self, PsRow, UnionRow};
use crate::types::NodeName;

const VERSIONS: [&str; 2] = ["0.24.0", "0.32.15"];

fn node(name: &str) -> NodeName {
    NodeName::parse(name).unwrap()
}

/// The text without what we add.
fn plain(body: &[u8]) -> String {
    let mut value: Value = serde_json::from_slice(body).unwrap();
    for list in ["models", "data"] {
        for row in value.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            row.as_object_mut().unwrap().remove("mesh");
        }
    }
    value.to_string()
}

#[test]
fn one_nodes_lists_are_its_own_and_where_they_are() {
    let all = samples();
    let here = [node("desk")];
    for version in VERSIONS {
        let tags = &all[&format!("{version}/tags")].body;
        let rows = show::tags_rows(tags.as_bytes()).unwrap();
        assert!(rows.len() > 5 && rows.iter().all(|r| r.digest.is_some() && r.size > 0));
        let rows: Vec<_> = rows.iter().map(|r| UnionRow { row: &r.row, nodes: &here }).collect();
        let ours = union::tags(&rows);
        assert_eq!(plain(&ours), tags.trim_end(), "{version}");
        assert!(ours.windows(26).any(|w| w == br#""mesh":{"nodes":["desk"]}}"#));

        let models = union::models(&rows);
        let listed = |body: &[u8]| -> Vec<String> {
            let body: Value = serde_json::from_str(&plain(body)).unwrap();
            let mut rows: Vec<_> =
                body["data"].as_array().unwrap().iter().map(Value::to_string).collect();
            rows.sort();
            rows
        };
        let theirs = &all[&format!("{version}/v1-models")].body;
        assert_eq!(listed(&models), listed(theirs.as_bytes()), "{version}");
        assert!(models.ends_with(b"}\n") && theirs.ends_with("}\n"));

        let one = rows.iter().find(|r| r.row["name"] == "tiny:latest").unwrap();
        assert_eq!(union::model(one.row, "tiny"), all[&format!("{version}/v1-model")].body);

        let ps = &all[&format!("{version}/ps")].body;
        let loaded = show::ps_rows(ps.as_bytes()).unwrap();
        assert!(loaded.iter().all(|r| r.context == Some(4096) && r.digest.is_some()));
        let instances: Vec<_> = loaded.iter().map(|r| [(node("desk"), &r.row)]).collect();
        let rows: Vec<_> = instances.iter().map(|i| PsRow { instances: i }).collect();
        assert_eq!(plain(&union::ps(&rows, false)), *ps, "{version}");
    }
}

#[test]
fn a_model_on_two_nodes_is_one_row() {
    let row = |at: &str| -> Value {
        serde_json::from_str(&format!(
            r#"{{"name":"m:latest","model":"m:latest","modified_at":"{at}","expires_at":"{at}"}}"#
        ))
        .unwrap()
    };
    let (old, new) = (row("2026-01-01T00:00:00Z"), row("2026-06-01T00:00:00+02:00"));
    assert_eq!(union::pick([(&old, false), (&new, false)]), Some(&new));
    assert_eq!(union::pick([(&new, false), (&old, true)]), Some(&old));
    assert_eq!(union::pick([]), None);

    let nodes = [node("desk"), node("gpu")];
    let other = union::renamed(&old, "m@gpu");
    let rows =
        [UnionRow { row: &other, nodes: &nodes[1..] }, UnionRow { row: &new, nodes: &nodes }];
    let tags: Value = serde_json::from_slice(&union::tags(&rows)).unwrap();
    assert_eq!(tags["models"][0]["mesh"]["nodes"], serde_json::json!(["desk", "gpu"]));
    assert_eq!(
        (&tags["models"][1]["name"], &tags["models"][1]["model"]),
        (&"m@gpu".into(), &"m@gpu".into())
    );

    let instances = [(nodes[0].clone(), &old), (nodes[1].clone(), &new)];
    let rows = [PsRow { instances: &instances }];
    let merged: Value = serde_json::from_slice(&union::ps(&rows, false)).unwrap();
    assert_eq!(merged["models"].as_array().unwrap().len(), 1);
    assert_eq!(merged["models"][0]["mesh"]["instances"][0]["node"], "gpu");
    let each: Value = serde_json::from_slice(&union::ps(&rows, true)).unwrap();
    let names: Vec<_> = each["models"].as_array().unwrap().iter().map(|r| &r["name"]).collect();
    assert_eq!(names, ["m:latest@gpu", "m:latest@desk"]);
}

#[test]
fn an_engine_without_ollamas_lists_is_in_v1_only() {
    let body = std::fs::read(folder().join("llamacpp/v1_models.json")).unwrap();
    let rows = show::model_rows(&body).unwrap();
    assert_eq!((rows[0].name.as_str(), rows[0].context), ("tiny", Some(2048)));
    assert_eq!(rows[0].owner, "llamacpp");
    let nodes = [node("nas")];
    let rows = [UnionRow { row: &rows[0].row, nodes: &nodes }];
    assert_eq!(union::tags(&rows), r#"{"models":[]}"#);
    assert_eq!(
        union::models(&rows),
        "{\"object\":\"list\",\"data\":[{\"id\":\"tiny\",\"object\":\"model\",\"created\":1795244519,\
         \"owned_by\":\"llamacpp\",\"mesh\":{\"nodes\":[\"nas\"]}}]}\n"
    );
    assert_eq!(union::models(&[]), "{\"object\":\"list\",\"data\":[]}\n");
}

#[test]
fn the_same_model_is_of_one_class_in_both_versions() {
    let all = samples();
    let shown = |case: String| Shown::read(all[&case].body.as_bytes()).unwrap();
    let [old, new] = VERSIONS.map(|v| shown(format!("{v}/show")));
    assert_eq!((&old.weights, old.class), (&new.weights, new.class));
    assert!(old.weights.is_some() && old.capabilities.tools && old.capabilities.completion);
    assert_eq!((new.context, new.num_ctx), (Some(4096), None));
    // Other template, same weights.
    let tiny = shown(format!("{}/show-name-field", VERSIONS[1]));
    assert_eq!(tiny.weights, new.weights);
    assert_ne!(tiny.class, new.class);
}

#[test]
fn only_the_folder_of_a_blob_is_taken_out_of_show() {
    for s in samples().values().filter(|s| s.path == "/api/show" && s.status == 200) {
        let body = bytes::Bytes::from(s.body.clone());
        let want = s.body.replace("/usr/share/ollama/.ollama/models/blobs/", "");
        assert_ne!(want, s.body, "{}", s.name);
        assert_eq!(show::blank_blob_path(&body), want, "{}", s.name);
    }
}
