# @generated from the proto files; make clients-python-lite-proto writes it anew.
