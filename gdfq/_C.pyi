torch_version: str
compiler: str
cuda_version: str | None
cuda_architectures: str | None
