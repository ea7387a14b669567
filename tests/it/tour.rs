//! The demo's tour keeps its own promises.

use tailherd::demo::tour::Mesh;

#[tokio::test]
async fn the_tour_comes_to_its_end() {
    let mesh = Mesh::start().await.unwrap();
    let mut out = Vec::new();
    let end = mesh.tour(&mut out).await;
    let told = String::from_utf8(out).unwrap();
    assert!(end.is_ok(), "{end:?}\n{told}");
    assert_eq!(told.matches("ok:").count(), 11, "{told}");
}
