"""An emulator of Google Cloud Storage, with an empty bucket named "bucket".

python object_store.py PORT
"""

import http
import sys
import threading


def serve(port: int) -> None:
    from gcp_storage_emulator.handlers import objects
    from gcp_storage_emulator.server import create_server

    download = objects.download

    def download_generation(request, response, storage, *arguments):
        """Adds the header and the precondition of downloads that TensorStore needs and the emulator lacks."""
        download(request, response, storage, *arguments)
        if response.status in (http.HTTPStatus.OK, http.HTTPStatus.PARTIAL_CONTENT):
            resource = storage.get_file_obj(request.params["bucket_name"], request.params["object_id"])
            response["x-goog-generation"] = resource["generation"]
            if resource["generation"] in request.query.get("ifGenerationNotMatch", []):
                response.status = http.HTTPStatus.NOT_MODIFIED
                response.write_file(b"")

    objects.download = download_generation
    create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket").start()


if __name__ == "__main__":
    serve(int(sys.argv[1]))
    print("ready", flush=True)
    threading.Event().wait()
