"""The bundle format: manifest, signatures and certificates.

Call `read_manifest`, `verify_bundle`, `sign_bundle`. Never imports MLflow or a backend.
"""
