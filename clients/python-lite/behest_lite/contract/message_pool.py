# @generated from the proto files; make clients-python-lite-proto writes it anew.
import betterproto2

default_message_pool = betterproto2.MessagePool()
