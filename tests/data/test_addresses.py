from dropcluster_jax.data.addresses import parse_address


def test_addresses_have_a_scheme():
    assert parse_address("gs:/bucket/x") == parse_address("gs://bucket/x") == "gs://bucket/x"
    assert parse_address("s3://bucket") == "s3://bucket"
    for path in ("x", "/x/y", "C:\\x", "c:/x", "~/gs", "folder:x", ":/x"):
        assert parse_address(path) is None, path
