"""Where answers come from: the provider port, the catalog, the adapters. Above: runtime. Below: vendors."""
