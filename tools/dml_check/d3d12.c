/* Direct3D 12 for DirectML under Wine: vkd3d behind the functions of d3d12.dll that are called.
 *
 * Wine's own d3d12.dll knows no DXIL, lacks D3D12GetInterface, and says that it cannot list meta commands,
 * which ends DMLCreateDevice. This one lists none. With D3D12_CLAIM_HALF in the environment it says that the
 * device computes in 16 bits: the provider then shows what it would take on a GPU. With half.patch vkd3d
 * computes such numbers in 32 bits, and keeps them in buffers of 16.
 */

#define COBJMACROS
#include <windows.h>
#include <initguid.h>
#include <d3d12.h>
#include <dxgi1_6.h>
#include <stdlib.h>
#include <vkd3d.h>

static ID3D12Device9Vtbl of_vkd3d;

static HRESULT signal_event(HANDLE event) {
    return SetEvent(event) ? S_OK : E_FAIL;
}

static HRESULT STDMETHODCALLTYPE no_meta_commands(ID3D12Device9* device, UINT* count,
                                                  D3D12_META_COMMAND_DESC* descriptions) {
    (void)device;
    (void)descriptions;
    *count = 0;
    return S_OK;
}

static HRESULT STDMETHODCALLTYPE claim(ID3D12Device9* device, D3D12_FEATURE feature, void* data, UINT size) {
    const HRESULT result = of_vkd3d.CheckFeatureSupport(device, feature, data, size);
    if (FAILED(result))
        return result;
    if (feature == D3D12_FEATURE_SHADER_MODEL)
        ((D3D12_FEATURE_DATA_SHADER_MODEL*)data)->HighestShaderModel = D3D_SHADER_MODEL_6_2;
    else if (feature == D3D12_FEATURE_D3D12_OPTIONS4)
        ((D3D12_FEATURE_DATA_D3D12_OPTIONS4*)data)->Native16BitShaderOpsSupported = TRUE;
    return result;
}

/* All devices share one table of functions. */
static HRESULT amend(IUnknown* made) {
    ID3D12Device9* device;
    DWORD protection;
    HRESULT result = IUnknown_QueryInterface(made, &IID_ID3D12Device9, (void**)&device);
    if (FAILED(result))
        return result;
    ID3D12Device9Vtbl* table = (ID3D12Device9Vtbl*)device->lpVtbl;
    if (table->EnumerateMetaCommands != no_meta_commands) {
        of_vkd3d = *table;
        if (!VirtualProtect(table, sizeof *table, PAGE_READWRITE, &protection))
            result = E_FAIL;
        else {
            table->EnumerateMetaCommands = no_meta_commands;
            if (getenv("D3D12_CLAIM_HALF"))
                table->CheckFeatureSupport = claim;
        }
    }
    device->lpVtbl->Release(device);
    return result;
}

static LUID adapter_luid(IUnknown* adapter) {
    DXGI_ADAPTER_DESC description = {0};
    IDXGIAdapter* known;
    if (adapter && SUCCEEDED(IUnknown_QueryInterface(adapter, &IID_IDXGIAdapter, (void**)&known))) {
        IDXGIAdapter_GetDesc(known, &description);
        IDXGIAdapter_Release(known);
    }
    return description.AdapterLuid;
}

static HRESULT make_instance(struct vkd3d_instance** instance) {
    static const char* const extensions[] = {"VK_KHR_external_memory_capabilities",
                                             "VK_KHR_get_physical_device_properties2"};
    const HMODULE vulkan = LoadLibraryA("vulkan-1.dll");
    const struct vkd3d_application_info application = {.type = VKD3D_STRUCTURE_TYPE_APPLICATION_INFO,
                                                       .api_version = VKD3D_API_VERSION_1_14};
    const struct vkd3d_optional_instance_extensions_info optional = {
        .type = VKD3D_STRUCTURE_TYPE_OPTIONAL_INSTANCE_EXTENSIONS_INFO,
        .next = &application,
        .extensions = extensions,
        .extension_count = 2};
    const struct vkd3d_instance_create_info info = {
        .type = VKD3D_STRUCTURE_TYPE_INSTANCE_CREATE_INFO,
        .next = &optional,
        .pfn_signal_event = signal_event,
        .wchar_size = sizeof(WCHAR),
        .pfn_vkGetInstanceProcAddr = (void*)GetProcAddress(vulkan, "vkGetInstanceProcAddr")};
    return vkd3d_create_instance(&info, instance);
}

static HRESULT make_device(IUnknown* adapter, D3D_FEATURE_LEVEL level, IUnknown** device) {
    struct vkd3d_instance* instance;
    HRESULT result = make_instance(&instance);
    if (FAILED(result))
        return result;
    const struct vkd3d_device_create_info info = {.type = VKD3D_STRUCTURE_TYPE_DEVICE_CREATE_INFO,
                                                  .minimum_feature_level = level,
                                                  .instance = instance,
                                                  .parent = adapter,
                                                  .adapter_luid = adapter_luid(adapter)};
    result = vkd3d_create_device(&info, &IID_ID3D12Device, (void**)device);
    vkd3d_instance_decref(instance);
    return SUCCEEDED(result) ? amend(*device) : result;
}

/* Direct3D 12 has one device for each adapter, whoever asks, and callers count on sharing it. There is one
 * adapter here, and its device stays until the process ends. */
HRESULT WINAPI D3D12CreateDevice(IUnknown* adapter, D3D_FEATURE_LEVEL level, REFIID id, void** device) {
    static SRWLOCK lock = SRWLOCK_INIT;
    static IUnknown* the_device;
    HRESULT result = S_OK;
    AcquireSRWLockExclusive(&lock);
    if (!the_device)
        result = make_device(adapter, level, &the_device);
    ReleaseSRWLockExclusive(&lock);
    if (FAILED(result))
        return result;
    /* Without a place for it, the caller only asks whether there could be one. */
    return device ? IUnknown_QueryInterface(the_device, id, device) : S_FALSE;
}

HRESULT WINAPI D3D12GetInterface(REFCLSID class_id, REFIID id, void** object) {
    (void)class_id;
    (void)id;
    if (object)
        *object = NULL;
    return E_NOINTERFACE;
}

HRESULT WINAPI D3D12GetDebugInterface(REFIID id, void** object) {
    (void)id;
    (void)object;
    return DXGI_ERROR_SDK_COMPONENT_MISSING;
}

HRESULT WINAPI D3D12EnableExperimentalFeatures(UINT count, const IID* ids, void* settings, UINT* sizes) {
    (void)count;
    (void)ids;
    (void)settings;
    (void)sizes;
    return E_NOINTERFACE;
}

HRESULT WINAPI D3D12CreateRootSignatureDeserializer(const void* data, SIZE_T size, REFIID id, void** object) {
    return vkd3d_create_root_signature_deserializer(data, size, id, object);
}

HRESULT WINAPI D3D12CreateVersionedRootSignatureDeserializer(const void* data, SIZE_T size, REFIID id,
                                                             void** object) {
    return vkd3d_create_versioned_root_signature_deserializer(data, size, id, object);
}

HRESULT WINAPI D3D12SerializeRootSignature(const D3D12_ROOT_SIGNATURE_DESC* description,
                                           D3D_ROOT_SIGNATURE_VERSION version, ID3DBlob** blob,
                                           ID3DBlob** errors) {
    return vkd3d_serialize_root_signature(description, version, blob, errors);
}

HRESULT WINAPI D3D12SerializeVersionedRootSignature(const D3D12_VERSIONED_ROOT_SIGNATURE_DESC* description,
                                                    ID3DBlob** blob, ID3DBlob** errors) {
    return vkd3d_serialize_versioned_root_signature(description, blob, errors);
}
